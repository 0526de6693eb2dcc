from __future__ import annotations

import gzip
import struct
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data import Dataset
from hpdl_mpi.data.convert import Options, convert
from hpdl_mpi.data.convert import limits as limits_module
from hpdl_mpi.data.convert.idx import TYPES, read_idx

CODES = {np.dtype(name): code for code, name in TYPES.items()}


def to_idx(array: np.ndarray) -> bytes:
    big = array.astype(array.dtype.newbyteorder(">"))
    code = CODES[big.dtype]
    return struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape) + big.tobytes()


def write(path: Path, array: np.ndarray) -> Path:
    data = to_idx(array)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.fixture
def mnist_like(tmp_path) -> tuple[Path, dict[str, np.ndarray]]:
    """Return a folder in the form of MNIST, some files gzipped, and its arrays."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "idx"
    folder.mkdir()
    arrays = {}
    for prefix, count, end in (("train", 60, ".gz"), ("t10k", 20, "")):
        arrays[f"{prefix} x"] = rng.integers(0, 256, (count, 5, 4)).astype(np.uint8)
        arrays[f"{prefix} y"] = (np.arange(count) % 4).astype(np.uint8)
        write(folder / f"{prefix}-images-idx3-ubyte{end}", arrays[f"{prefix} x"])
        write(folder / f"{prefix}-labels-idx1-ubyte{end}", arrays[f"{prefix} y"])
    return folder, arrays


def stored(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    dataset = Dataset.open(folder)
    x = np.empty((dataset.num_samples, *dataset.input_shape), dataset.input_dtype)
    y = np.empty((dataset.num_samples, *dataset.target_shape), dataset.target_dtype)
    dataset.read(np.arange(dataset.num_samples), x, y)
    return x, y


def test_a_folder_of_pairs_becomes_train_and_test(mnist_like, tmp_path) -> None:
    source, arrays = mnist_like
    folders = convert(source, tmp_path / "out", Options(shards=3))
    assert folders == [tmp_path / "out/train", tmp_path / "out/test"]
    for folder, prefix in zip(folders, ("train", "t10k"), strict=True):
        x, y = stored(folder)
        assert np.array_equal(x, arrays[f"{prefix} x"][..., None])  # a channel dimension is added
        assert np.array_equal(y, arrays[f"{prefix} y"])
    assert len(list(folders[0].iterdir())) == 3


def test_one_file_of_images_finds_its_labels_and_can_be_split(mnist_like, tmp_path) -> None:
    source, arrays = mnist_like
    convert(source / "train-images-idx3-ubyte.gz", tmp_path / "out", Options(test_fraction=0.25, seed=3))
    x_train, y_train = stored(tmp_path / "out/train")
    x_test, y_test = stored(tmp_path / "out/test")
    assert (len(y_train), len(y_test)) == (45, 15)
    together = {(x.tobytes(), int(y)) for x, y in zip([*x_train, *x_test], [*y_train, *y_test], strict=True)}
    assert together == {(x.tobytes(), int(y)) for x, y in zip(arrays["train x"], arrays["train y"], strict=True)}


def test_per_class_takes_as_many_of_each_class_in_turn(mnist_like, tmp_path) -> None:
    source, arrays = mnist_like
    convert(source, tmp_path / "out", Options(per_class=7, test_per_class=2, seed=1))
    x, y = stored(tmp_path / "out/train")
    assert y.tolist() == [0, 1, 2, 3] * 7
    place = {image.tobytes(): index for index, image in enumerate(arrays["train x"])}
    chosen = [place[image.tobytes()] for image in x]
    assert len(set(chosen)) == 28
    assert arrays["train y"][chosen].tolist() == y.tolist()
    assert chosen != sorted(chosen)  # by a seeded order, not the first of the file
    assert stored(tmp_path / "out/test")[1].tolist() == [0, 1, 2, 3] * 2
    convert(source, tmp_path / "again", Options(per_class=7, test_per_class=2, seed=1))
    assert np.array_equal(stored(tmp_path / "again/train")[0], x)
    convert(source, tmp_path / "other", Options(per_class=7, seed=2))
    assert not np.array_equal(stored(tmp_path / "other/train")[0], x)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_every_type_of_idx_is_read_in_native_order(tmp_path, dtype, suffix) -> None:
    array = np.random.default_rng(0).integers(-100, 100, (4, 3)).astype(dtype)
    result = read_idx(write(tmp_path / f"a{suffix}", array))
    assert result.dtype == array.dtype
    assert result.dtype.isnative
    assert np.array_equal(result, array)


GOOD = to_idx(np.zeros((10, 4, 4), np.uint8))


LIES = {
    "empty": (b"", "not an IDX file"),
    "half a magic number": (b"\x00\x00\x08", "not an IDX file"),
    "another format": (b"P5\n10 10 255 ....", "not an IDX file. Found first bytes 50350a31"),
    "no such type": (b"\x00\x00\x07\x01\x00\x00\x00\x01\x00", "not an IDX file"),
    "no dimension": (b"\x00\x00\x08\x00", "not an IDX file"),
    "255 dimensions": (b"\x00\x00\x08\xff" + bytes(1020), "not an IDX file"),
    "half a header": (b"\x00\x00\x08\x03\x00\x00", "shorter than its header"),
    "short": (
        GOOD[:-1],
        r"length does not fit its header. Found 159 bytes; expected 160 for shape \(10, 4, 4\) of uint8",
    ),
    "long": (GOOD + b"\x00", "length does not fit its header. Found 161 bytes"),
    "huge": (
        struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1) + bytes(9),
        "length does not fit its header",
    ),
    "gzipped, short": (gzip.compress(GOOD[:-1]), "holds less than its header says. Expected 160 bytes"),
    "gzipped, long": (gzip.compress(GOOD + b"\x00"), "holds more than its header says. Expected 160 bytes"),
    "gzip cut off": (gzip.compress(GOOD)[:-9], "damaged gzip data"),
    "gzip with a wrong checksum": (gzip.compress(GOOD)[:-6] + b"\x00" * 6, "damaged gzip data"),
    "not gzip": (b"\x1f\x8b" + b"garbage" * 5, "damaged gzip data"),
}


@pytest.mark.parametrize(("data", "message"), LIES.values(), ids=LIES)
def test_a_lying_or_damaged_file_is_refused_with_its_name(tmp_path, data, message) -> None:
    path = tmp_path / "images"
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"images: {message}"):
        read_idx(path)


def test_a_gzipped_claim_beyond_what_deflate_can_hold_takes_no_memory(tmp_path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 2**20, 2**10, 2**10)))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"bomb\.gz: claims more data than it can hold. Found \d+ bytes announced"):
        read_idx(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_gzip_bomb_is_not_unpacked_beyond_its_header(tmp_path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(GOOD + bytes(2**26)))
    tracemalloc.start()
    with pytest.raises(InputError, match="holds more than its header says"):
        read_idx(path)
    assert tracemalloc.get_traced_memory()[1] < 2**21  # of 64 MiB
    tracemalloc.stop()


def test_a_file_that_is_gone_is_named(tmp_path) -> None:
    with pytest.raises(InputError, match=r"/gone: cannot be read\. Found No such file or directory"):
        read_idx(tmp_path / "gone")


def test_data_beyond_the_memory_of_the_machine_is_refused_before_it_is_read(tmp_path, monkeypatch) -> None:
    path = write(tmp_path / "a.gz", np.zeros((100, 10), np.uint8))
    monkeypatch.setattr(limits_module.os, "sysconf", lambda name: 10)
    with pytest.raises(InputError, match=r"does not fit in memory\. Found 1000 bytes; expected at most 100"):
        read_idx(path)


def test_sources_that_are_not_complete_are_explained(mnist_like, tmp_path) -> None:
    source, _ = mnist_like
    out = tmp_path / "out"
    with pytest.raises(InputError, match="no such file or folder"):
        convert(tmp_path / "nowhere", out)
    with pytest.raises(InputError, match="--target is for CSV, not IDX"):
        convert(source, out, Options(target="y"))
    with pytest.raises(InputError, match=r"has a test split of its own\. Leave out --test-fraction"):
        convert(source, out, Options(test_fraction=0.5))
    with pytest.raises(
        InputError, match=r"a class has too few samples\. Found 15 samples of class 0; expected at least 16"
    ):
        convert(source, out, Options(per_class=16))
    with pytest.raises(InputError, match="--targets"):
        convert(source, out, Options(per_class=1, targets="labels"))
    with pytest.raises(InputError, match="no test split to write"):
        convert(source / "train-images-idx3-ubyte.gz", out, Options(test_shards=2))
    write(source / "train-images-copy", np.zeros((1, 2, 2), np.uint8))
    with pytest.raises(InputError, match=r"more than one candidate\. Found train-images-copy, train-images-idx3"):
        convert(source, out)
    (source / "train-images-copy").unlink()
    write(source / "train-labels-idx1-ubyte.gz", np.zeros(59, np.uint8))
    with pytest.raises(InputError, match=r"images and labels do not fit. Found images \(60, 5, 4\), labels \(59,\)"):
        convert(source, out)
    (source / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError, match="no labels found beside the images"):
        convert(source, out)
    (source / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(InputError, match="no file of training images"):
        convert(source, out)
    assert not out.exists()


def test_an_existing_target_is_refused_before_the_source_is_read(tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("precious")
    with pytest.raises(InputError, match="exists already"):
        convert(tmp_path / "nowhere", tmp_path / "out")
    assert (tmp_path / "out/mine").read_text() == "precious"


def test_converted_files_open_with_plain_h5py(mnist_like, tmp_path) -> None:
    source, arrays = mnist_like
    convert(source, tmp_path / "out")
    with h5py.File(tmp_path / "out/train/train-00000-of-00001.h5") as file:
        assert np.array_equal(file["x"][:, :, :, 0], arrays["train x"])
