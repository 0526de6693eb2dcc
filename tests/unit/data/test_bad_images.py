"""Folders of images that are not what they should be: damaged files, empty classes, wrong places."""

from __future__ import annotations

import csv
import math
import os
import struct
import zlib

import numpy as np
import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import run_threads
from hpdl_mpi.data.convert import Options, convert
from hpdl_mpi.data.convert import decode as decode_module
from hpdl_mpi.data.convert import images as images_module
from hpdl_mpi.data.convert.decode import MAX_PIXELS
from hpdl_mpi.data.convert.files import Files
from tests.images import NOISE, class_names, contents, encoded, nothing_left, stored, write_images


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
