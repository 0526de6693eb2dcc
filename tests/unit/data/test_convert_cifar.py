from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import run_threads
from hpdl_mpi.data.convert import Options, convert
from hpdl_mpi.data.convert.cifar import read_splits
from hpdl_mpi.data.convert.files import list_folder
from hpdl_mpi.data.hdf5 import text_attribute
from hpdl_mpi.data.writer import write_dataset
from tests.images import contents, stored
from tests.unit.data.test_convert_archive import tar_of

NAMES = b"airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n"


def records(rng: np.random.Generator, *num_classes: int, count: int) -> bytes:
    """Return so many records of random labels and pixels."""
    labels = np.stack([rng.integers(0, classes, count) for classes in num_classes], axis=1).astype(np.uint8)
    return np.hstack([labels, rng.integers(0, 256, (count, 3072)).astype(np.uint8)]).tobytes()


def parsed(data: bytes, num_labels: int) -> tuple[list[np.ndarray], list[list[int]]]:
    """Return images and labels, one pixel after another."""
    images, labels = [], []
    for start in range(0, len(data), num_labels + 3072):
        record = data[start : start + num_labels + 3072]
        labels.append(list(record[:num_labels]))
        image = np.empty((32, 32, 3), np.uint8)
        for place, value in enumerate(record[num_labels:]):
            image[place % 1024 // 32, place % 32, place // 1024] = value
        images.append(image)
    return images, labels


@pytest.fixture
def cifar10(tmp_path: Path) -> Path:
    """Return a folder with two batches of training images and one of test images."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name, count in (("data_batch_1", 5), ("data_batch_2", 4), ("test_batch", 3)):
        (folder / f"{name}.bin").write_bytes(records(rng, 10, count=count))
    (folder / "batches.meta.txt").write_bytes(NAMES)
    (folder / "readme.html").write_text("not data")
    return folder


def attribute(split: Path, array: str) -> list[str]:
    with h5py.File(next(split.glob("*.h5"))) as file:
        return text_attribute(file[array], "classes")


@given(
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=12), seed=st.integers(0, 2**32), shards=st.integers(1, 3)
)
def test_any_batches_of_cifar_10_are_read_in_their_order(counts, seed, shards) -> None:
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "in"
        source.mkdir()
        data = [records(rng, 10, count=count) for count in counts]
        for number, batch in enumerate(data, 1):
            (source / f"data_batch_{number}.bin").write_bytes(batch)
        convert(source, Path(name) / "out", Options(shards=min(shards, sum(counts))))
        x, y = stored(Path(name) / "out/train")
    images, labels = parsed(b"".join(data), 1)
    assert np.array_equal(x, images)
    assert y.tolist() == [label for (label,) in labels]


@given(train=st.integers(1, 6), test=st.integers(0, 3), seed=st.integers(0, 2**32))
def test_both_labels_of_cifar_100_are_kept(train, test, seed) -> None:
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "in"
        source.mkdir()
        data = {split: records(rng, 20, 100, count=count) for split, count in (("train", train), ("test", test))}
        for split, content in data.items():
            if content:
                (source / f"{split}.bin").write_bytes(content)
        folders = convert(source, Path(name) / "out")
        assert [folder.name for folder in folders] == ["train", "test"][: 1 + bool(test)]
        for folder in folders:
            images, labels = parsed(data[folder.name], 2)
            x, fine = stored(folder)
            _, coarse = stored(folder, "y_coarse")
            assert np.array_equal(x, images)
            assert [list(pair) for pair in zip(coarse.tolist(), fine.tolist(), strict=True)] == labels


@given(
    records_=st.integers(0, 2),
    extra=st.sampled_from([0, 0, 0, 1, 1536, 3072]),
    labels=st.lists(st.sampled_from([0, 9, 10, 255]), min_size=2, max_size=2),
)
def test_a_file_is_read_if_its_size_and_labels_fit_and_refused_otherwise(records_, extra, labels) -> None:
    data = b"".join(bytes([label]) + bytes(3072) for label in labels[:records_]) + bytes(extra)
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "data_batch_1.bin"
        source.write_bytes(data)
        if data and extra == 0 and max(labels[:records_]) < 10:
            convert(source, Path(name) / "out")
            assert stored(Path(name) / "out/train")[1].tolist() == labels[:records_]
            return
        with pytest.raises(InputError, match=r"data_batch_1\.bin(: image [01])?: (length is not|a label outside)"):
            convert(source, Path(name) / "out")
        assert [path.name for path in Path(name).iterdir()] == ["data_batch_1.bin"]


def test_a_file_that_is_gone_once_it_was_listed_or_looked_at_is_named(cifar10, tmp_path) -> None:
    batch = cifar10 / "data_batch_2.bin"
    files = list_folder(cifar10)
    splits = read_splits(files)
    batch.unlink()
    for use in (lambda: read_splits(files), lambda: write_dataset(tmp_path / "out", splits, num_shards={})):
        with pytest.raises(InputError, match=f"^{batch}: cannot be read. Found No such file or directory.$"):
            use()
    assert not (tmp_path / "out").exists()


def test_names_of_classes_are_taken_where_they_lie_beside(cifar10, tmp_path) -> None:
    convert(cifar10, tmp_path / "out")
    assert attribute(tmp_path / "out/train", "y") == NAMES.decode().split()
    assert attribute(tmp_path / "out/test", "y") == NAMES.decode().split()
    (cifar10 / "batches.meta.txt").write_bytes(b"cat\ndog\n")
    with pytest.raises(InputError, match=r"batches\.meta\.txt: wrong number of names\. Found 2; expected 10"):
        convert(cifar10, tmp_path / "none")
    (cifar10 / "batches.meta.txt").unlink()
    convert(cifar10, tmp_path / "nameless")
    assert attribute(tmp_path / "nameless/train", "y") == []


def test_the_archive_as_it_is_offered_gives_the_same(cifar10, tmp_path) -> None:
    members = [(f"{cifar10.name}/{path.name}", path.read_bytes()) for path in cifar10.iterdir()]
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(gzip.compress(tar_of(*members)))
    convert(tmp_path / "cifar-10-binary.tar.gz", tmp_path / "packed", Options(shards=2))
    convert(cifar10, tmp_path / "plain", Options(shards=2))
    assert contents(tmp_path / "packed") == contents(tmp_path / "plain")
    assert not list(tmp_path.glob(".*"))


def test_ranks_write_the_same_bytes_as_one(cifar10, tmp_path) -> None:
    options = Options(shards=3)
    convert(cifar10, tmp_path / "alone", options)
    run_threads(3, lambda comm: convert(cifar10, tmp_path / "together", options, comm))
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")


def test_some_of_each_class_can_be_chosen_from_all_batches(tmp_path) -> None:
    rng = np.random.default_rng(1)
    source = tmp_path / "in"
    source.mkdir()
    data = [bytearray(records(rng, 10, count=20)) for _ in range(2)]
    for batch in data:
        batch[::3073] = bytes(list(range(10)) * 2)
    for number, batch in enumerate(data, 1):
        (source / f"data_batch_{number}.bin").write_bytes(batch)
    convert(source, tmp_path / "out", Options(per_class=3))
    x, y = stored(tmp_path / "out/train")
    assert y.tolist() == list(range(10)) * 3
    images, labels = parsed(bytes(data[0] + data[1]), 1)
    label_of = {image.tobytes(): label for image, (label,) in zip(images, labels, strict=True)}
    assert [label_of[image.tobytes()] for image in x] == y.tolist()


def test_files_that_are_not_complete_are_explained(cifar10, tmp_path) -> None:
    out = tmp_path / "out"
    (cifar10 / "data_batch_2.bin").rename(cifar10 / "data_batch_3.bin")
    with pytest.raises(InputError, match=r"'train' of CIFAR-10 are missing.*data_batch_1\.bin, data_batch_3\.bin; exp"):
        convert(cifar10, out)
    (cifar10 / "data_batch_3.bin").unlink()
    (cifar10 / "train.bin").write_bytes(records(np.random.default_rng(0), 20, 100, count=1))
    with pytest.raises(InputError, match="files of CIFAR-10 and of CIFAR-100"):
        convert(cifar10, out)
    with pytest.raises(InputError, match=r"'train' of CIFAR-10 are missing, or there twice\. Found none"):
        convert(cifar10 / "test_batch.bin", out)
    with pytest.raises(InputError, match="--size is for images, not CIFAR"):
        convert(cifar10 / "data_batch_1.bin", out, Options(size=8))
    assert not out.exists()


@pytest.mark.parametrize(
    "names", [["data_batch_1", "test_batch", "batches.meta"], ["train", "test", "meta"], ["data_batch_1"]]
)
def test_the_pickled_version_is_refused_by_name(tmp_path, names) -> None:
    source = tmp_path / "cifar-python"
    source.mkdir()
    for name in names:
        (source / name).write_bytes(b"\x80\x04.")
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar_of(*((f"x/{name}", b"\x80\x04.") for name in names))))
    for path in (source, tmp_path / "a.tar.gz", *([source / names[0]] if len(names) == 1 else [])):
        with pytest.raises(
            InputError, match=r"for Python, which is pickled and could run anything\. .*cifar-10-binary"
        ):
            convert(path, tmp_path / "out")
