"""Datasets that are damaged, incomplete or made to mislead: refused, with file, place and remedy."""

from __future__ import annotations

import os
import re

import h5py
import numpy as np
import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data import Dataset
from hpdl_mpi.data.arrays import read_samples
from hpdl_mpi.data.writer import Split, write_dataset


def read_inputs(dataset: Dataset, ids: list[int]) -> np.ndarray:
    x = np.empty((len(ids), *dataset.input_shape), dataset.input_dtype)
    y = np.empty((len(ids), *dataset.target_shape), dataset.target_dtype)
    dataset.read(np.array(ids, np.int64), x, y)
    return x


def flip_byte(path, array: str, chunk: int) -> None:
    """Damage one stored chunk, and nothing else of the file."""
    with h5py.File(path, "r") as file:
        info = file[array].id.get_chunk_info(chunk)
    with open(path, "r+b") as raw:
        raw.seek(info.byte_offset + info.size // 2)
        byte = raw.read(1)
        raw.seek(-1, os.SEEK_CUR)
        raw.write(bytes([byte[0] ^ 0x55]))


def test_nothing_there_is_said_plainly(tmp_path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such file, folder or match.*hpdl data convert"):
        Dataset.open(tmp_path / "nowhere")
    (tmp_path / "above/train").mkdir(parents=True)
    (tmp_path / "above/train/a.h5").touch()
    with pytest.raises(InputError, match=r"in the folder\. Name one of the folders in it: train\."):
        Dataset.open(tmp_path / "above")
    with pytest.raises(InputError, match=r"no \.h5 or \.hdf5 file in the folder"):
        Dataset.open(tmp_path)


def test_an_empty_path_is_not_the_current_folder(write_shards, monkeypatch) -> None:
    monkeypatch.chdir(write_shards([4])[0])
    assert Dataset.open(".").num_samples == 4
    with pytest.raises(InputError, match="no data are named"):
        Dataset.open("")


def test_an_npz_file_without_the_array_says_the_same_as_hdf5(tmp_path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 2)))
    with pytest.raises(InputError, match=r"a\.npz: no array 'x'\. Found images\. Name one that is there.* or --array"):
        next(read_samples(tmp_path / "a.npz", "x", 1))


@pytest.mark.parametrize("array", [np.float32(1), np.zeros((0, 3))], ids=["number", "empty"])
def test_an_npz_array_without_samples_is_refused(tmp_path, array) -> None:
    np.savez(tmp_path / "a.npz", x=array)
    with pytest.raises(InputError, match=r"a\.npz: x: no samples\. Found shape \(.*\); expected at least one sample"):
        next(read_samples(tmp_path / "a.npz", "x", 1))


def test_damage_in_samples_to_predict_from_names_file_and_samples(tmp_path) -> None:
    x = np.arange(40, dtype=np.float32).reshape(10, 4)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=x, chunks=(5, 4), fletcher32=True)
    flip_byte(tmp_path / "a.h5", "x", 1)
    pieces = read_samples(tmp_path / "a.h5", "x", 4)
    assert np.array_equal(next(pieces), x[:4])
    with pytest.raises(InputError, match=r"a\.h5: samples 4 to 7 of 'x' cannot be read\. Found .*Copy or write"):
        next(pieces)


def test_an_absent_array_lists_those_that_are_there(write_file) -> None:
    path = write_file("a.h5", {"images": np.zeros((2, 2)), "group/labels": np.zeros(2)})
    remedy = (
        r"Name one that is there: in a job with data\.inputs and .*, on the command line with --inputs and --targets"
    )
    with pytest.raises(InputError, match=rf"a\.h5: no array 'x'. Found group/labels, images\. {remedy}"):
        Dataset.open(path)
    with pytest.raises(InputError, match="no array 'group'"):
        Dataset.open(path, inputs="images", targets="group")


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((0, 3)), np.zeros(0), r"x: no samples\. Found shape \(0, 3\)"),
        (np.zeros((4, 0)), np.zeros(4), r"x: no samples\. Found shape \(4, 0\)"),
        (np.float32(3.0), np.zeros(4), r"x: no samples\. Found shape \(\)"),
        (np.zeros((4, 2)), np.zeros(3), r"4 samples in 'x' and 3 in 'y'; expected the same number"),
        (np.array([b"a", b"b"]), np.zeros(2), r"x: cannot train on this type\. Found \|S1"),
        (np.zeros(2, np.complex64), np.zeros(2), r"cannot train on this type\. Found complex64"),
    ],
)
def test_arrays_that_cannot_be_trained_on_are_refused(write_file, x, y, message) -> None:
    with pytest.raises(InputError, match=message):
        Dataset.open(write_file("a.h5", {"x": x, "y": y}))


@pytest.mark.parametrize("x", [np.zeros((4, 3), np.uint8), np.zeros((4, 2), np.float32)])
def test_shards_that_disagree_are_refused(write_file, tmp_path, x) -> None:
    write_file("a.h5", {"x": np.zeros((4, 2), np.uint8), "y": np.zeros(4)})
    write_file("b.h5", {"x": x, "y": np.zeros(4)})
    found = f"Found samples of shape {x.shape[1:]}, {x.dtype}; expected shape (2,), uint8, as in a.h5"
    with pytest.raises(InputError, match=r"b\.h5: shards disagree about 'x'\. " + re.escape(found)):
        Dataset.open(tmp_path)


def test_a_file_that_is_not_hdf5_or_truncated_is_named_with_the_remedy(write_shards) -> None:
    folder, _, _ = write_shards([50, 50])
    path = folder / "part-1.h5"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        InputError, match=r"part-1\.h5: cannot be read as HDF5\. Found truncated file.*hpdl data verify"
    ):
        Dataset.open(folder)
    path.write_bytes(b"hello")
    with pytest.raises(InputError, match=r"part-1\.h5: cannot be read as HDF5\. Found file signature not found"):
        Dataset.open(folder)


def test_a_damaged_chunk_names_file_and_samples_and_spares_the_others(tmp_path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (3000, 400)).astype(np.uint8)
    write_dataset(tmp_path / "d", {"train": Split({"x": x, "y": np.zeros(3000, np.uint8)})}, num_shards={"train": 2})
    path = tmp_path / "d/train/train-00001-of-00002.h5"
    flip_byte(path, "x", 1)
    dataset = Dataset.open(tmp_path / "d/train")
    chunk = np.diff(dataset.block_starts)[0]
    bad = 1500 + chunk
    with pytest.raises(
        InputError, match=rf"00001-of-00002\.h5: samples {chunk} to {2 * chunk - 1} of 'x' cannot be read.*verify"
    ):
        read_inputs(dataset, [0, int(bad)])
    assert np.array_equal(read_inputs(dataset, [0, 1500]), x[[0, 1500]])


def test_a_file_whose_writer_died_is_refused(tmp_path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (100, 4), np.float32, chunks=(10, 4), compression="gzip")[:50] = 1.0
        file["y"] = np.zeros(100)
    with pytest.raises(InputError, match=r"a\.h5: x: samples are absent, and HDF5 would read them as zeros"):
        Dataset.open(path)
    with h5py.File(path, "w") as file:
        file["x"] = np.zeros((100, 4))
        file.create_dataset("y", (100,), np.float32)
    with pytest.raises(InputError, match=r"a\.h5: y: samples are absent"):
        Dataset.open(path)


def test_a_claimed_size_that_is_not_there_takes_no_memory(tmp_path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for name in ("x", "y"):
            file.create_dataset(name, (2**50, 8), np.uint8, chunks=(1024, 8), compression="gzip")
    with pytest.raises(InputError, match="samples are absent"):
        Dataset.open(path)


def test_data_in_other_files_is_not_followed(tmp_path, write_file) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(32))
    other = write_file("other.h5", {"x": np.zeros((4, 8), np.uint8)})
    for name in ("external", "link", "virtual"):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["y"] = np.zeros(4)
            if name == "external":
                file.create_dataset("x", (4, 8), np.uint8, external=[(str(secret), 0, 32)])
            elif name == "link":
                file["x"] = h5py.ExternalLink(str(other), "x")
            else:
                layout = h5py.VirtualLayout((4, 8), np.uint8)
                layout[:] = h5py.VirtualSource(str(other), "x", (4, 8))
                file.create_virtual_dataset("x", layout)
        with pytest.raises(InputError, match=r"x: is stored in other files"):
            Dataset.open(tmp_path / f"{name}.h5")


def test_a_missing_or_doubled_shard_is_noticed_by_name_and_by_attribute(tmp_path, monkeypatch) -> None:
    arrays = {"x": np.zeros((12, 2), np.uint8), "y": np.zeros(12, np.uint8)}
    write_dataset(tmp_path / "d", {"train": Split(arrays)}, num_shards={"train": 4})
    folder = tmp_path / "d/train"
    assert Dataset.open(folder).num_samples == 12
    gone = folder / "train-00002-of-00004.h5"
    content = gone.read_bytes()
    gone.unlink()
    with pytest.raises(
        InputError, match=r"train: shards are missing\. Found numbers 0, 1, 3; expected 0 to 3, each once"
    ):
        Dataset.open(folder)
    assert Dataset.open(str(folder / "*.h5")).num_samples == 9  # a glob is what somebody asked for
    for index, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"renamed{index}.h5")
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (folder, "~/d/train"):
        with pytest.raises(InputError, match="shards are missing"):
            Dataset.open(path)
    (folder / "again.h5").write_bytes(content)
    assert Dataset.open(folder).num_samples == 12
    (folder / "once-more.h5").write_bytes(content)
    with pytest.raises(InputError, match="shards are there twice"):
        Dataset.open(folder)


def test_shards_of_two_datasets_in_one_folder_are_refused(tmp_path, write_file) -> None:
    arrays = {"x": np.zeros((4, 2), np.uint8), "y": np.zeros(4, np.uint8)}
    write_dataset(tmp_path / "d", {"train": Split(arrays)}, num_shards={"train": 2})
    write_file("d/train/mine.h5", arrays)
    with pytest.raises(InputError, match="shards of different datasets in one folder"):
        Dataset.open(tmp_path / "d/train")


def test_a_newer_version_of_the_format_is_refused(write_file) -> None:
    path = write_file("a.h5", {"x": np.zeros((4, 2)), "y": np.zeros(4)})
    with h5py.File(path, "a") as file:
        file.attrs["format"] = np.bytes_("hpdl_mpi dataset 99")
    with pytest.raises(InputError, match=r"unknown version of the format\. Found hpdl_mpi dataset 99"):
        Dataset.open(path)


def test_a_file_without_a_suffix_is_said_to_have_none(tmp_path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(InputError, match=r"/data: a file of unknown format\. Found no suffix; expected \.h5"):
        next(read_samples(tmp_path / "data", "x", 1))
