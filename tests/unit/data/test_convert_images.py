from __future__ import annotations

import csv
import io
import math
import os
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import run_threads
from hpdl_mpi.data.convert import Options, convert
from hpdl_mpi.data.convert import decode as decode_module
from hpdl_mpi.data.convert import images as images_module
from hpdl_mpi.data.convert.decode import MAX_PIXELS, Form, decode
from hpdl_mpi.data.convert.files import Files
from hpdl_mpi.data.hdf5 import text_attribute
from hpdl_mpi.data.verify import verify
from tests.images import contents, encoded, signalled, stored, write_images

NOISE = np.random.default_rng(0).integers(0, 256, (6, 5, 3)).astype(np.uint8)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a folder of two classes, with four and three images."""
    write_images(tmp_path / "source", {"cat": 4, "ant": 3})
    return tmp_path / "source"


def class_names(split: Path) -> list[str]:
    with h5py.File(next(split.glob("*.h5"))) as file:
        return text_attribute(file["y"], "classes")


def pairs(folder: Path) -> set[tuple[bytes, int]]:
    return {(image.tobytes(), int(label)) for image, label in zip(*stored(folder), strict=True)}


def nothing_left(folder: Path) -> bool:
    return not folder.exists() and not list(folder.parent.glob(f".{folder.name}*"))


def test_a_folder_per_class_becomes_train_with_sorted_classes(tmp_path) -> None:
    images = write_images(tmp_path / "source", {"cat": 4, "ant": 3, "Zebra/wild/young": 2})
    (tmp_path / "source/cat/notes.txt").write_text("no image, and no matter")
    (tmp_path / "source/cat/.hidden.png").write_text("nor this")
    (tmp_path / "source/__MACOSX/cat").mkdir(parents=True)
    assert convert(tmp_path / "source", tmp_path / "out") == [tmp_path / "out/train"]
    assert class_names(tmp_path / "out/train") == ["Zebra", "ant", "cat"]
    expected = {(image.tobytes(), ["Zebra", "ant", "cat"].index(name.split("/")[0])) for name, image in images.items()}
    assert pairs(tmp_path / "out/train") == expected
    x, y = stored(tmp_path / "out/train")
    assert (x.shape, x.dtype, y.dtype) == ((9, 6, 5, 3), np.uint8, np.uint8)


def test_folders_named_for_splits_become_those_splits(tmp_path) -> None:
    counts = {f"{split}/{name}": count for split, count in (("train", 5), ("test", 2), ("val", 3)) for name in "ab"}
    images = write_images(tmp_path / "source", counts)
    (tmp_path / "source/lists").mkdir()
    folders = convert(tmp_path / "source", tmp_path / "out", Options(test_shards=2, per_class=4, test_per_class=1))
    assert folders == [tmp_path / "out" / split for split in ("train", "test", "val")]
    for split, count in (("train", 8), ("test", 2), ("val", 2)):
        assert class_names(tmp_path / "out" / split) == ["a", "b"]
        assert pairs(tmp_path / "out" / split) <= {
            (image.tobytes(), "ab".index(name.split("/")[1]))
            for name, image in images.items()
            if name.startswith(f"{split}/")
        }
        assert len(pairs(tmp_path / "out" / split)) == count
    assert len(list((tmp_path / "out/val").iterdir())) == 2


def test_a_class_may_be_called_train(tmp_path) -> None:
    write_images(tmp_path / "source", {"train": 2, "test": 2, "plane": 2})
    convert(tmp_path / "source", tmp_path / "out")
    assert class_names(tmp_path / "out/train") == ["plane", "test", "train"]


def test_a_seeded_order_mixes_the_classes_in_every_shard(tmp_path) -> None:
    write_images(tmp_path / "source", dict.fromkeys("abcd", 50), (2, 2, 3))
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        convert(tmp_path / "source", tmp_path / name, Options(shards=4, seed=seed))
    for report in verify(tmp_path / "one/train"):
        # Of 50 drawn from four equal classes; fewer than 4 of one have a probability below 1e-4.
        assert report.num_samples == 50
        assert len(report.class_counts) == 4
        assert report.class_counts.min() >= 4
    assert contents(tmp_path / "one") == contents(tmp_path / "again")
    assert pairs(tmp_path / "one/train") == pairs(tmp_path / "other/train")
    assert not np.array_equal(stored(tmp_path / "one/train")[1], stored(tmp_path / "other/train")[1])


def test_a_test_split_is_made_beside_another_one(tmp_path) -> None:
    write_images(tmp_path / "source", {"train/a": 4, "val/a": 3})
    folders = convert(tmp_path / "source", tmp_path / "out", Options(test_fraction=0.25))
    assert {folder.name: len(stored(folder)[1]) for folder in folders} == {"train": 3, "val": 3, "test": 1}


def test_images_are_split_and_chosen_like_any_other_samples(tmp_path) -> None:
    images = write_images(tmp_path / "source", {"a": 10, "b": 10})
    convert(tmp_path / "source", tmp_path / "out", Options(test_fraction=0.25, per_class=5))
    train, test = pairs(tmp_path / "out/train"), pairs(tmp_path / "out/test")
    assert stored(tmp_path / "out/train")[1].tolist() == [0, 1] * 5
    assert len(test) == 5
    assert not train & test
    assert train | test <= {(image.tobytes(), "ab".index(name[0])) for name, image in images.items()}


@pytest.mark.parametrize("ending", [".jpg", ".JPEG", ".png", ".bmp", ".ppm", ".webp"])
def test_every_format_is_decoded_as_pillow_does(tmp_path, ending) -> None:
    (tmp_path / "source/a").mkdir(parents=True)
    path = tmp_path / "source/a" / f"1{ending}"
    Image.fromarray(NOISE).save(path)
    convert(tmp_path / "source", tmp_path / "out")
    assert np.array_equal(stored(tmp_path / "out/train")[0][0], np.asarray(Image.open(path).convert("RGB")))


def test_colours_of_any_kind_become_red_green_and_blue() -> None:
    def decoded(image: Image.Image, form: str, grayscale: bool = False) -> np.ndarray:
        buffer = io.BytesIO()
        image.save(buffer, form)
        buffer.seek(0)
        return decode(buffer, Form(grayscale=grayscale))

    gray = Image.fromarray(NOISE[..., 0])
    alpha = Image.fromarray(np.dstack([NOISE, NOISE[..., 0]]))
    palette = Image.fromarray(NOISE).quantize(16)
    clear = palette.copy()
    clear.info["transparency"] = bytes(range(16))
    assert np.array_equal(decoded(Image.fromarray(NOISE), "PNG"), NOISE)
    assert np.array_equal(decoded(gray, "PNG"), np.repeat(NOISE[..., :1], 3, axis=2))
    assert np.array_equal(decoded(gray, "PNG", grayscale=True), NOISE[..., :1])
    assert np.array_equal(decoded(alpha, "PNG"), NOISE)  # what is transparent has its colour
    assert np.array_equal(decoded(palette, "PNG"), np.asarray(palette.convert("RGB")))
    assert np.array_equal(decoded(clear, "PNG"), np.asarray(palette.convert("RGB")))
    assert np.array_equal(
        decoded(gray.point(lambda v: 255 * (v > 99)).convert("1"), "PNG", True) > 0, NOISE[..., :1] > 99
    )
    inks = decoded(Image.fromarray(NOISE).convert("CMYK"), "JPEG")
    assert inks.shape == NOISE.shape
    # ITU-R 601-2, rounded.
    weighed = NOISE @ np.array([0.299, 0.587, 0.114])
    assert np.abs(decoded(Image.fromarray(NOISE), "PNG", True)[..., 0] - weighed).max() <= 0.5 + 1e-2


def scaled(line: np.ndarray, size: int) -> np.ndarray:
    """Return the first dimension resampled by a triangle as wide as the scale, in float64; Pillow does it in bytes."""
    scale = len(line) / size
    width = max(scale, 1.0)
    out = np.empty((size, *line.shape[1:]))
    for i in range(size):
        weights = np.maximum(0, 1 - np.abs(np.arange(len(line)) + 0.5 - (i + 0.5) * scale) / width)
        out[i] = np.tensordot(weights / weights.sum(), line, 1)
    return out


@pytest.mark.parametrize("shape", [(40, 31), (31, 40), (17, 17), (8, 8), (5, 7), (3, 30), (64, 9)])
def test_size_scales_the_shorter_side_and_cuts_the_middle(shape) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3)).astype(np.uint8)
    found = decode(io.BytesIO(encoded(pixels)), Form(size=8))
    height, width = (8 * side // min(shape) for side in shape)
    expected = scaled(scaled(pixels.astype(float), height).swapaxes(0, 1), width).swapaxes(0, 1)
    top, left = round((height - 8) / 2), round((width - 8) / 2)
    # Each of two passes rounds to a whole number, with weights of 22 bits.
    assert np.abs(found - expected[top : top + 8, left : left + 8]).max() <= 1.0 + 1e-3


def test_images_of_any_size_get_one(tmp_path) -> None:
    write_images(tmp_path / "source", {"a": 2}, (9, 7, 3))
    write_images(tmp_path / "source", {"b": 2}, (3, 4, 3))
    convert(tmp_path / "source", tmp_path / "out", Options(size=5, grayscale=True))
    x, y = stored(tmp_path / "out/train")
    assert x.shape == (4, 5, 5, 1)
    assert sorted(y) == [0, 0, 1, 1]


def test_images_of_different_sizes_are_refused_with_the_remedy(tmp_path) -> None:
    write_images(tmp_path / "source", {"a": 2}, (9, 7, 3))
    write_images(tmp_path / "source", {"b": 2}, (6, 8, 3))
    write_images(tmp_path / "source", {"c": 1}, (1, 2000, 3))  # says nothing of what is usual
    found = r"Found 9 x 7 in a/0000\.png and 6 x 8 in b/0000\.png \(height x width\)"
    with pytest.raises(InputError, match=rf"{found}; .*such as --size 6\."):
        convert(tmp_path / "source", tmp_path / "out")
    for size in (0, 8193):
        with pytest.raises(InputError, match=f"--size: out of range. Found {size}; expected 1 to 8192"):
            convert(tmp_path / "source", tmp_path / "out", Options(size=size))
    assert nothing_left(tmp_path / "out")


def huge_png(side: int = math.isqrt(MAX_PIXELS) + 1) -> bytes:
    """Return a file of a few bytes that claims more pixels than there may be."""
    data = bytearray(encoded(NOISE))
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def deep_png(color_type: int, channels: int) -> bytes:
    """Return a PNG of one pixel, with 16 bits in each channel."""
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", 1, 1, 16, color_type, 0, 0, 0),
        b"IDAT": zlib.compress(bytes(1 + 2 * channels)),
        b"IEND": b"",
    }
    chunks = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


DEEP = {
    "PNG, grey and transparent": deep_png(4, 2),
    "PNG, colours": deep_png(2, 3),
    "PNG, colours and transparent": deep_png(6, 4),
    "PPM, colours": b"P6\n1 1\n65535\n" + bytes(6),
    "PPM, colours of 10 bits": b"P6\n1 1\n1023\n" + bytes(6),
    "PPM, grey": b"P5\n1 1\n65535\n" + bytes(2),
    "PPM, colours in words": b"P3\n1 1\n65535\n0 1 65535\n",
}
"""Files whose lower eight bits Pillow would drop."""

BAD = {
    "empty": (b"", "an empty file"),
    "text": (b"hello, world. " * 9, "not an image. Found first bytes 68656c6c6f2c20776f726c642e206865"),
    "of another format": (encoded(NOISE, "GIF"), "not an image. Found first bytes 474946"),
    "a short header": (encoded(NOISE)[:20], "not an image|a damaged image"),
    "cut in the middle": (encoded(NOISE, "JPEG")[:-30], "a damaged image. Found image file is truncated"),
    "cut PNG": (encoded(NOISE)[:-40], "a damaged image"),
    "of 16 bits": (
        encoded(NOISE[..., 0].astype(np.uint16)),
        "does not fit into 8 bits. Found PNG of more than 8 bits per channel",
    ),
    **{
        f"of 16 bits, {kind}": (data, f"does not fit into 8 bits. Found {kind[:3]} of more than 8 bits per channel")
        for kind, data in DEEP.items()
    },
    "too many pixels": (huge_png(), "too many pixels. Found .*at most 89478485"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_an_error_or_left_out_as_if_it_were_not_there(source, tmp_path, kind) -> None:
    data, message = BAD[kind]
    bad = source / "cat/0001 bad.jpg"
    bad.write_bytes(data)
    with pytest.raises(InputError, match=f"^{bad}: .*({message}).*--skip-bad"):
        convert(source, tmp_path / "out")
    assert nothing_left(tmp_path / "out")
    convert(source, tmp_path / "skipped", Options(skip_bad=True, shards=2))
    with open(tmp_path / "skipped/skipped.csv", newline="") as file:
        head, row = csv.reader(file)
    assert head == ["file", "reason"]
    assert row[0] == str(bad)
    assert "--skip-bad" not in row[1]
    bad.unlink()
    convert(source, tmp_path / "without", Options(shards=2))
    assert contents(tmp_path / "skipped/train") == contents(tmp_path / "without/train")


@pytest.mark.filterwarnings("ignore:Image size .* exceeds limit")
def test_too_many_pixels_are_refused_where_pillow_only_warns(source, tmp_path) -> None:
    (source / "cat/huge.png").write_bytes(huge_png())
    found = r"Found 9460 x 9460 pixels \(height x width\)"
    with pytest.raises(InputError, match=rf"cat/huge\.png: too many pixels\. {found}; expected at most 89478485"):
        convert(source, tmp_path / "out")


def test_what_pillow_refuses_itself_is_told_with_one_limit(source, tmp_path) -> None:
    (source / "cat/huge.png").write_bytes(huge_png(20_000))
    message = (
        r"cat/huge\.png: too many pixels\. Found 400000000 pixels; expected at most 89478485, also when scaled\. Sc"
    )
    with pytest.raises(InputError, match=message):
        convert(source, tmp_path / "out")


def test_a_narrow_image_is_refused_where_scaling_would_make_it_huge(source, tmp_path) -> None:
    (source / "cat/line.png").write_bytes(encoded(np.zeros((1, 3000), np.uint8)))
    with pytest.raises(
        InputError, match=r"cat/line\.png: too many pixels\. Found 256 x 768000 pixels \(height x width\)"
    ):
        convert(source, tmp_path / "out", Options(size=256))


def test_nothing_but_bad_images_is_an_error_even_if_they_may_be_left_out(source, tmp_path) -> None:
    for image in source.rglob("*.png"):
        image.write_bytes(b"")
    message = rf"^{source}: no image in it can be used. Found 7 bad images, .*ant/0000\.png: an empty file\. Mend them"
    with pytest.raises(InputError, match=message):
        convert(source, tmp_path / "out", Options(skip_bad=True))
    for image in [*source.glob("cat/*"), *source.glob("ant/000[1-9]*")]:
        image.unlink()
    with pytest.raises(InputError, match=rf"Found 1 bad image, {source}/ant/0000\.png: an empty file\. Mend"):
        convert(source, tmp_path / "out", Options(skip_bad=True))


def test_a_class_of_bad_images_alone_is_left_out_with_them(source, tmp_path) -> None:
    write_images(source, {"bee": 2})
    for image in (source / "bee").iterdir():
        image.write_bytes(b"")
    convert(source, tmp_path / "out", Options(skip_bad=True))
    assert class_names(tmp_path / "out/train") == ["ant", "cat"]
    assert stored(tmp_path / "out/train")[1].max() == 1
    with open(tmp_path / "out/skipped.csv", newline="") as file:
        names = [name for name, _ in csv.reader(file)]
    assert names == ["file", f"{source}/bee", f"{source}/bee/0000.png", f"{source}/bee/0001.png"]


def test_a_disk_that_fails_is_no_bad_image(source, tmp_path, monkeypatch) -> None:
    def fail(self, index):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Files, "open", fail)
    with pytest.raises(InputError, match=r"ant/0000\.png: cannot be read. Found Input/output error\.$"):
        convert(source, tmp_path / "out", Options(skip_bad=True))


def test_a_bug_of_ours_is_no_bad_image(source, tmp_path, monkeypatch) -> None:
    def fail(sides, size):
        raise TypeError("a bug")

    monkeypatch.setattr(decode_module, "_resized", fail)
    with pytest.raises(TypeError, match="a bug"):
        convert(source, tmp_path / "out", Options(size=4, skip_bad=True))


def test_an_image_that_changes_meanwhile_is_noticed(source, tmp_path, monkeypatch) -> None:
    def change(*arguments):
        result = check(*arguments)
        (source / "ant/0002.png").write_bytes(encoded(NOISE[:1, :1]))
        return result

    check = images_module._check
    monkeypatch.setattr(images_module, "_check", change)
    with pytest.raises(InputError, match=r"ant/0002\.png: has changed.*Found \(1, 1, 3\); expected \(6, 5, 3\)"):
        convert(source, tmp_path / "out")
    assert nothing_left(tmp_path / "out")


def test_an_empty_class_is_an_error_or_left_out(source, tmp_path) -> None:
    (source / "bee").mkdir()
    with pytest.raises(InputError, match=f"^{source}/bee: a class without images.*--skip-bad"):
        convert(source, tmp_path / "out")
    convert(source, tmp_path / "out", Options(skip_bad=True))
    assert class_names(tmp_path / "out/train") == ["ant", "cat"]
    assert "bee" in (tmp_path / "out/skipped.csv").read_text()


def test_every_split_has_the_classes_of_train(tmp_path) -> None:
    source = tmp_path / "source"
    write_images(source, {"train/a": 2, "train/b": 2, "test/b": 1})
    with pytest.raises(InputError, match="source/test/a: a class without images"):
        convert(source, tmp_path / "out")
    convert(source, tmp_path / "out", Options(skip_bad=True))
    assert stored(tmp_path / "out/test")[1].tolist() == [1]  # as in train, where it is the second
    write_images(source, {"test/a": 1, "test/c": 1})
    with pytest.raises(InputError, match=r"source/test: classes that are not in .*/train. Found c; expected a, b"):
        convert(source, tmp_path / "none")


@pytest.mark.parametrize("inside", ["", "a"])
def test_a_split_without_images_is_an_error(tmp_path, inside) -> None:
    write_images(tmp_path / "source", {"train/a": 2})
    (tmp_path / "source/test" / inside).mkdir(parents=True)
    with pytest.raises(InputError, match="source/test/a: a class without images"):
        convert(tmp_path / "source", tmp_path / "out")
    with pytest.raises(InputError, match="source/test: no images in it"):
        convert(tmp_path / "source", tmp_path / "out", Options(skip_bad=True))


def test_a_train_folder_without_images_is_no_class(tmp_path) -> None:
    write_images(tmp_path / "source", {"train/a": 0, "test/a": 2})
    with pytest.raises(InputError, match="source/train/a: a class without images"):
        convert(tmp_path / "source", tmp_path / "out")
    with pytest.raises(InputError, match="source/train: no images in it"):
        convert(tmp_path / "source", tmp_path / "out", Options(skip_bad=True))


def test_images_in_other_places_are_refused(source, tmp_path) -> None:
    (source / "preview.png").write_bytes(encoded(NOISE))
    with pytest.raises(InputError, match=r"source/preview\.png: an image that lies in no folder of a class"):
        convert(source, tmp_path / "out")
    write_images(tmp_path / "splits", {"train/a": 2, "extra/a": 1})
    with pytest.raises(InputError, match=r"extra/a/0000\.png: .*Expected train, test or val/<class>/file"):
        convert(tmp_path / "splits", tmp_path / "out")
    (tmp_path / "nothing/here").mkdir(parents=True)
    with pytest.raises(InputError, match=r"nothing: no images in it\. Found no files; expected <class>"):
        convert(tmp_path / "nothing", tmp_path / "out")
    assert nothing_left(tmp_path / "out")


def test_links_are_followed_once_and_must_lead_somewhere(source, tmp_path) -> None:
    write_images(tmp_path, {"elsewhere": 2})
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    convert(source, tmp_path / "out")
    assert class_names(tmp_path / "out/train") == ["ant", "cat", "linked"]
    (source / "cat/back").symlink_to(source)
    with pytest.raises(InputError, match=r"cat/back: the same folder is there twice\. Remove the link"):
        convert(source, tmp_path / "none")
    (source / "cat/back").unlink()
    (source / "cat/nowhere.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match=r"cat/nowhere\.png: neither a file nor a folder"):
        convert(source, tmp_path / "none")


def test_a_class_needs_a_name_that_is_text_but_a_file_does_not(source, tmp_path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    (source / "cat" / name).write_bytes(b"")
    convert(source, tmp_path / "out", Options(skip_bad=True))
    assert b"cat/caf\xe9.png,an empty file" in (tmp_path / "out/skipped.csv").read_bytes()
    (source / "cat" / name).unlink()
    write_images(source, {os.fsdecode(b"caf\xe9"): 1})
    with pytest.raises(InputError, match=r"a name that is not UTF-8. Found caf\\xe9\."):
        convert(source, tmp_path / "none")


def test_options_of_other_formats_are_refused(source, tmp_path) -> None:
    with pytest.raises(InputError, match="--target, --classes and --missing are for CSV, not images"):
        convert(source, tmp_path / "out", Options(target="y"))
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 2)), y=np.zeros(3))
    for options in (Options(size=8), Options(grayscale=True), Options(skip_bad=True)):
        with pytest.raises(InputError, match="--size, --grayscale and --skip-bad are for images, not NPZ"):
            convert(tmp_path / "a.npz", tmp_path / "out", options)


@pytest.mark.parametrize("num_ranks", [2, 3, 5])
def test_any_number_of_ranks_write_the_same_bytes(source, tmp_path, num_ranks, monkeypatch) -> None:
    monkeypatch.setattr(images_module, "_SURVEY", 2)  # several rounds
    (source / "cat/0002.png").write_bytes(b"")
    options = Options(shards=4, test_fraction=0.34, skip_bad=True)
    convert(source, tmp_path / "alone", options)
    run_threads(num_ranks, lambda comm: convert(source, tmp_path / "together", options, comm))
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(("number", "data"), [(0, BAD["text"][0]), (3, BAD["cut PNG"][0])])
def test_all_ranks_learn_of_an_error_and_nothing_is_left(source, tmp_path, number, data) -> None:
    (source / f"cat/{number:04d}.png").write_bytes(data)

    def refused(comm) -> str:
        with pytest.raises(InputError) as caught:
            convert(source, tmp_path / "out", Options(shards=4), comm)
        assert caught.value.shared
        return str(caught.value)

    with pytest.raises(InputError) as alone:
        convert(source, tmp_path / "out", Options(shards=4))
    assert set(run_threads(3, refused)) == {str(alone.value)}
    assert nothing_left(tmp_path / "out")


def test_formats_that_are_read_whole_want_one_rank(tmp_path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 2)), y=np.zeros(3))

    def refused(comm) -> None:
        with pytest.raises(InputError, match=r"NPZ is read by one rank\. Found 2 ranks\. Start without a launcher"):
            convert(tmp_path / "a.npz", tmp_path / "out", None, comm)

    run_threads(2, refused)


def test_a_kill_in_the_middle_leaves_nothing_that_opens_as_a_dataset(source, tmp_path) -> None:
    call = f"""
from hpdl_mpi.data.convert import Options, convert
convert({str(source)!r}, {str(tmp_path / "out")!r}, Options(shards=4))
"""
    program = signalled(signal.SIGKILL, "00002-of", call)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120, check=False)
    assert done.returncode == -9, done.stderr
    assert not (tmp_path / "out").exists()


def test_no_more_than_a_shard_is_in_memory(tmp_path) -> None:
    # 300 images of 192 KiB make 56 MiB; a shard of them, packed and not, less than 6.
    source = tmp_path / "source"
    write_images(source, {"a": 1}, (256, 256, 3))
    for number in range(1, 300):
        (source / f"a/{number:04d}.png").symlink_to(source / "a/0000.png")
    program = f"""
import resource
from hpdl_mpi.data.convert import Options, convert
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
convert({str(source)!r}, {str(tmp_path / "few")!r}, Options(shards=2, per_class=30, compression=1))
before = peak()
convert({str(source)!r}, {str(tmp_path / "all")!r}, Options(shards=20, compression=1))
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout) < 20 * 2**20
