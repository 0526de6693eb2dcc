"""Folders of images become datasets: classes, splits, formats and sizes, on any number of ranks."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import run_threads
from hpdl_mpi.data.convert import Options, convert
from hpdl_mpi.data.convert import images as images_module
from hpdl_mpi.data.convert.decode import Form, decode
from hpdl_mpi.data.verify import verify
from tests.images import NOISE, class_names, contents, encoded, nothing_left, signalled, stored, write_images


def pairs(folder: Path) -> set[tuple[bytes, int]]:
    return {(image.tobytes(), int(label)) for image, label in zip(*stored(folder), strict=True)}


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


"""Files whose lower eight bits Pillow would drop."""


def test_options_of_other_formats_are_refused(source, tmp_path) -> None:
    with pytest.raises(InputError, match="--target is for CSV, not images"):
        convert(source, tmp_path / "out", Options(target="y"))
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 2)), y=np.zeros(3))
    for options in (Options(size=8), Options(grayscale=True), Options(skip_bad=True)):
        with pytest.raises(InputError, match=r"for images.*, not NPZ"):
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
