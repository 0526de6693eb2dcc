from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpdl_mpi.base.errors import InputError, StorageError
from hpdl_mpi.base.shares import share
from hpdl_mpi.data import Dataset
from hpdl_mpi.data.convert import Options, convert
from hpdl_mpi.data.hdf5 import TARGET_BLOCK_BYTES, text_attribute
from hpdl_mpi.data.writer import Split, chunk_samples, write_dataset


def make_split(num_samples: int = 20) -> Split:
    rng = np.random.default_rng(0)
    return Split({"x": rng.normal(size=(num_samples, 3)).astype(np.float32), "y": np.arange(num_samples)})


def test_shards_hold_the_shares_of_a_split_in_order_and_say_who_they_are(tmp_path) -> None:
    split = make_split(10)
    write_dataset(tmp_path / "d", {"train": split, "test": make_split(4)}, num_shards={"train": 3, "test": None})
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.h5"))
    assert names == ["d/test/test-00000-of-00001.h5", *(f"d/train/train-0000{i}-of-00003.h5" for i in range(3))]
    for index in range(3):
        rows = slice(*share(10, index, 3))
        with h5py.File(tmp_path / names[1 + index]) as file:
            assert np.array_equal(file["x"][:], split.arrays["x"][rows])
            assert np.array_equal(file["y"][:], split.arrays["y"][rows])
            assert (file.attrs["shard_index"], file.attrs["num_shards"]) == (index, 3)
            assert file["x"].dtype == np.float32
            for array in file.values():
                assert array.chunks
                assert (array.compression, array.shuffle, array.fletcher32) == ("gzip", True, True)


def test_compression_can_be_switched_off_and_checksums_stay(tmp_path) -> None:
    write_dataset(tmp_path / "d", {"train": make_split()}, num_shards={}, compression=0)
    with h5py.File(tmp_path / "d/train/train-00000-of-00001.h5") as file:
        assert file["x"].compression is None
        assert file["x"].fletcher32


def test_names_of_any_number_and_alphabet_survive(tmp_path) -> None:
    names = [f"größe {i}" for i in range(8000)]  # more than 64 KiB, the bound of old attributes
    split = Split({"x": np.zeros((2, 8000), np.uint8), "y": np.zeros(2)}, {"x": {"features": names}})
    write_dataset(tmp_path / "d", {"train": split}, num_shards={})
    with h5py.File(tmp_path / "d/train/train-00000-of-00001.h5") as file:
        assert text_attribute(file["x"], "features") == names


@pytest.mark.parametrize("row_bytes", [1, 52, 784, 3072, 200_000, 10**6])
def test_chunks_are_powers_of_two_of_bounded_size(row_bytes) -> None:
    samples = chunk_samples(np.zeros((2, row_bytes), np.uint8))
    assert samples & (samples - 1) == 0
    assert samples == 1 or samples * row_bytes <= TARGET_BLOCK_BYTES
    assert samples == 4096 or 2 * samples * row_bytes > TARGET_BLOCK_BYTES


def test_the_same_input_gives_the_same_bytes(tmp_path) -> None:
    for name in ("a", "b"):
        write_dataset(tmp_path / name, {"train": make_split()}, num_shards={"train": 2})
    for shard in ("train-00000-of-00002.h5", "train-00001-of-00002.h5"):
        assert (tmp_path / "a/train" / shard).read_bytes() == (tmp_path / "b/train" / shard).read_bytes()


def test_what_exists_is_never_overwritten_but_an_empty_folder_is_used(tmp_path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    write_dataset(folder, {"train": make_split()}, num_shards={})
    content = {path: path.read_bytes() for path in folder.rglob("*.h5")}
    with pytest.raises(InputError, match=r"/d: exists already\. Give another folder, or remove this one"):
        write_dataset(folder, {"train": make_split(5)}, num_shards={})
    assert {path: path.read_bytes() for path in folder.rglob("*.h5")} == content
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        write_dataset(tmp_path / "file", {"train": make_split()}, num_shards={})


def test_more_shards_than_samples_are_refused(tmp_path) -> None:
    with pytest.raises(InputError, match=r"cannot make 5 shards of the split 'train'\. Found 4 samples"):
        write_dataset(tmp_path / "d", {"train": make_split(4)}, num_shards={"train": 5})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("failing_shard", [0, 1, 3])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch, failing_shard, error) -> None:
    np.savez(tmp_path / "source.npz", x=np.zeros((40, 2)), y=np.zeros(40))
    original, calls = h5py.Group.create_dataset, []

    def failing(self, name, *args, **options) -> h5py.Dataset:
        calls.append(name)
        if len(calls) == 2 * failing_shard + 2:  # x of this shard is written, y is not
            raise error
        return original(self, name, *args, **options)

    monkeypatch.setattr(h5py.Group, "create_dataset", failing)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else StorageError
    with pytest.raises(expected):
        convert(tmp_path / "source.npz", tmp_path / "d", Options(shards=4))
    assert [path.name for path in tmp_path.iterdir()] == ["source.npz"]
    monkeypatch.undo()
    convert(tmp_path / "source.npz", tmp_path / "d", Options(shards=4))
    assert Dataset.open(tmp_path / "d/train").num_samples == 40


def test_a_kill_in_the_middle_leaves_nothing_that_opens_as_a_dataset(tmp_path) -> None:
    program = f"""
import os, signal, h5py, numpy as np
from hpdl_mpi.data.writer import Split, write_dataset
original = h5py.Group.create_dataset
def killing(self, name, *args, **options):
    if "00002-of" in self.file.filename:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, name, *args, **options)
h5py.Group.create_dataset = killing
split = Split({{"x": np.zeros((8, 2)), "y": np.zeros(8)}})
write_dataset({str(tmp_path / "d")!r}, {{"train": split}}, num_shards={{"train": 4}})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120, check=False)
    assert done.returncode == -9, done.stderr
    assert not (tmp_path / "d").exists()
    with pytest.raises(InputError):
        Dataset.open(tmp_path / "d/train")
    with pytest.raises(InputError):
        Dataset.open(str(tmp_path / "*"))


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path) -> None:
    # A limit on the size of files binds every user, root too; a write fails as on a full disk.
    program = f"""
import resource, sys, numpy as np
from hpdl_mpi.base.errors import StorageError
from hpdl_mpi.data.writer import Split, write_dataset
x = np.random.default_rng(0).integers(0, 256, (4000, 100)).astype(np.uint8)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_dataset({str(tmp_path / "d")!r}, {{"train": Split({{"x": x, "y": x[:, 0]}})}}, num_shards={{}})
except StorageError as error:
    print(error)
    sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 7, done.stderr
    assert "the dataset could not be written" in done.stdout
    assert "free or name another place" in done.stdout.lower()
    assert not list(Path(tmp_path).iterdir())
