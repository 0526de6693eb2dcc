from __future__ import annotations

import os

import h5py
import numpy as np
import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data.verify import verify
from hpdl_mpi.data.writer import Split, write_dataset


@pytest.fixture
def folder(tmp_path):
    """Return a folder of two sound shards with 300 samples each of three named classes."""
    x = np.random.default_rng(0).normal(size=(600, 500)).astype(np.float32)
    split = Split({"x": x, "y": (np.arange(600) % 3).astype(np.uint8)}, {"y": {"classes": ["a", "b", "c"]}})
    write_dataset(tmp_path / "d", {"train": split}, num_shards={"train": 2})
    return tmp_path / "d/train"


def rewrite(path, array: str, change) -> None:
    """Put changed values in place of an array, with its attributes."""
    with h5py.File(path, "a") as file:
        values, attributes = file[array][:], dict(file[array].attrs)
        del file[array]
        change(values)
        file.create_dataset(array, data=values, chunks=True, fletcher32=True).attrs.update(attributes)


def test_a_sound_dataset_gives_a_report_per_shard(folder) -> None:
    reports = list(verify(folder))
    assert [report.path.name for report in reports] == [f"train-0000{i}-of-00002.h5" for i in range(2)]
    for report in reports:
        assert report.num_samples == 300
        assert report.class_counts.tolist() == [100, 100, 100]
        assert report.target_range is None
        assert report.checksums


def test_float_targets_have_a_range_and_foreign_files_no_checksums(write_file) -> None:
    path = write_file("a.h5", {"inputs": np.zeros((5, 2)), "out": np.array([3.0, -1.0, 2.0, 0.5, 0.0])})
    (report,) = verify(path, inputs="inputs", targets="out")
    assert report.class_counts is None
    assert report.target_range == (-1.0, 3.0)
    assert not report.checksums


@pytest.mark.parametrize("array", ["x", "y"])
def test_every_damaged_byte_of_a_chunk_is_found(folder, array) -> None:
    path = folder / "train-00001-of-00002.h5"
    with h5py.File(path) as file:
        chunk = file[array].id.get_chunk_info(0)
    whole = path.read_bytes()
    for position in np.linspace(0, chunk.size - 1, 9).astype(int):
        content = bytearray(whole)
        content[chunk.byte_offset + position] ^= 0xFF
        path.write_bytes(content)
        with pytest.raises(
            InputError, match=rf"train-00001-of-00002\.h5: samples 0 to \d+ of '{array}' cannot be read"
        ):
            list(verify(folder))


def test_truncation_is_found_at_any_length(folder) -> None:
    path = folder / "train-00000-of-00002.h5"
    size = path.stat().st_size
    for length in (0, 1, 100, size // 2, size - 1):
        os.truncate(path, length) if length < path.stat().st_size else path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(InputError, match=r"train-00000-of-00002\.h5: cannot be read as HDF5"):
            list(verify(folder))


def test_nan_and_infinity_are_found_with_their_sample(folder) -> None:
    path = folder / "train-00001-of-00002.h5"

    def spoil(x) -> None:
        x[123, 7] = np.inf

    rewrite(path, "x", spoil)
    with pytest.raises(
        InputError, match=r"00001-of-00002\.h5: sample 123 of 'x' is not finite\. Found NaN or infinity"
    ):
        list(verify(folder))


def test_nan_in_float_targets_is_found(write_file) -> None:
    y = np.zeros(9)
    y[4] = np.nan
    with pytest.raises(InputError, match="sample 4 of 'y' is not finite"):
        list(verify(write_file("a.h5", {"x": np.zeros((9, 2)), "y": y})))


def test_a_label_outside_the_named_classes_is_found_with_its_sample(folder) -> None:
    path = folder / "train-00000-of-00002.h5"

    def spoil(y) -> None:
        y[[250, 299]] = 3

    rewrite(path, "y", spoil)
    with pytest.raises(InputError, match=r"label 3 of sample 250 is outside the classes\. Expected 0 to 2"):
        list(verify(folder))


@pytest.mark.parametrize("label", [-1, 2**40])
def test_an_impossible_label_is_found_without_named_classes(write_file, label) -> None:
    y = np.array([0, 1, label])
    with pytest.raises(InputError, match=rf"label {label} of sample 2 is outside the classes"):
        list(verify(write_file("a.h5", {"x": np.zeros((3, 2)), "y": y})))


def test_a_shard_under_the_name_of_another_is_found(folder) -> None:
    first, second = sorted(folder.iterdir())
    first.rename(folder / "swap")
    second.rename(first)
    (folder / "swap").rename(second)
    with pytest.raises(InputError, match=r"00000-of-00002\.h5: a shard under the name of another\. Found shard 1 of 2"):
        list(verify(folder))


def test_a_missing_shard_is_found(folder) -> None:
    (folder / "train-00001-of-00002.h5").unlink()
    with pytest.raises(InputError, match="shards are missing"):
        list(verify(folder))


def test_random_damage_anywhere_is_found_or_harmless(folder) -> None:
    path = folder / "train-00000-of-00002.h5"
    whole = path.read_bytes()
    with h5py.File(path) as file:
        x, y = file["x"][:], file["y"][:]
    rng = np.random.default_rng(3)
    found = 0
    for _ in range(60):
        content = bytearray(whole)
        start = rng.integers(0, 2048 if rng.random() < 0.5 else len(whole) - 16)  # half of it in the metadata
        content[start : start + 8] = rng.bytes(8)
        path.write_bytes(content)
        try:
            list(verify(path))
        except InputError:
            found += 1
            continue
        with h5py.File(path) as file:
            assert np.array_equal(file["x"][:], x)
            assert np.array_equal(file["y"][:], y)
    assert found > 20


@pytest.mark.parametrize("offset", [8, 10**7])
def test_a_damaged_index_of_an_old_file_is_found_where_hdf5_reads_zeros(tmp_path, offset) -> None:
    path = tmp_path / "old.h5"
    with h5py.File(path, "w", libver=("earliest", "v108")) as file:
        file.create_dataset("x", data=np.ones((64, 64)), chunks=(16, 64), compression="gzip", fletcher32=True)
        file["y"] = np.zeros(64)
    with h5py.File(path) as file:
        place = file["x"].id.get_chunk_info(2).byte_offset
    content = path.read_bytes()
    assert content.count(place.to_bytes(8, "little")) == 1
    path.write_bytes(content.replace(place.to_bytes(8, "little"), (place + offset).to_bytes(8, "little")))
    with pytest.raises(InputError, match=r"old\.h5: /x: the index of chunks is damaged"):
        list(verify(path))
