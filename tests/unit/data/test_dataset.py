from __future__ import annotations

import os
import re
import threading

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data import Dataset
from hpdl_mpi.data import hdf5 as hdf5_module
from hpdl_mpi.data.hdf5 import TARGET_BLOCK_BYTES
from hpdl_mpi.data.writer import Split, write_dataset


def read(dataset: Dataset, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    x = np.empty((len(ids), *dataset.input_shape), dataset.input_dtype)
    y = np.empty((len(ids), *dataset.target_shape), dataset.target_dtype)
    dataset.read(np.array(ids, np.int64), x, y)
    return x, y


def flip_byte(path, array: str, chunk: int) -> None:
    """Damage one stored chunk, and nothing else of the file."""
    with h5py.File(path, "r") as file:
        info = file[array].id.get_chunk_info(chunk)
    with open(path, "r+b") as raw:
        raw.seek(info.byte_offset + info.size // 2)
        byte = raw.read(1)
        raw.seek(-1, os.SEEK_CUR)
        raw.write(bytes([byte[0] ^ 0x55]))


# Reading


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    st.sampled_from([None, 1, 3, 5, 50]),
    st.sampled_from([None, 1, 4, 50]),
    st.integers(0, 400),
    st.data(),
)
def test_read_returns_what_is_stored_whatever_the_chunks_and_the_cache(
    tmp_path_factory, counts, x_chunk, y_chunk, cache_bytes, data
) -> None:
    rng = np.random.default_rng(sum(counts))
    x = rng.integers(0, 1000, (sum(counts), 2, 3)).astype(np.int16)
    y = rng.normal(size=sum(counts)).astype(np.float32)
    folder = tmp_path_factory.mktemp("data")
    for index, stop in enumerate(np.cumsum(counts)):
        rows = slice(stop - counts[index], stop)
        with h5py.File(folder / f"{index}.h5", "w") as file:
            for name, array, chunk in (("x", x, x_chunk), ("y", y, y_chunk)):
                chunks = (min(chunk, counts[index]), *array.shape[1:]) if chunk else None
                file.create_dataset(name, data=array[rows], chunks=chunks, compression="gzip" if chunk else None)
    ids = data.draw(st.lists(st.integers(0, len(x) - 1), max_size=40))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hdf5_module, "TARGET_BLOCK_BYTES", 40)  # blocks of a few samples, so that they leave the cache
        dataset = Dataset.open(folder, cache_bytes=cache_bytes)
    for wanted in (ids, ids[::-1]):
        x_read, y_read = read(dataset, wanted)
        assert np.array_equal(x_read, x[wanted])
        assert np.array_equal(y_read, y[wanted])


def test_metadata_describes_samples_and_blocks(write_shards) -> None:
    folder, _, _ = write_shards([10, 7], sample=(28, 28, 1))
    dataset = Dataset.open(folder)
    assert (dataset.num_samples, dataset.input_shape, dataset.target_shape) == (17, (28, 28, 1), ())
    assert dataset.input_dtype == dataset.target_dtype == np.uint8
    assert dataset.block_starts.tolist() == [0, 10, 17]  # 4-sample chunks are small and read together, per file
    assert dataset.block_starts.dtype == np.int64


def test_large_chunks_are_blocks_and_small_or_no_chunks_are_grouped(write_file) -> None:
    rows = TARGET_BLOCK_BYTES // 1024
    x = np.zeros((5 * rows, 1024), np.uint8)
    y = np.zeros(5 * rows, np.uint8)

    def lengths(**options) -> set[int]:
        path = write_file("a.h5", {"x": x, "y": y})
        with h5py.File(path, "a") as file:
            del file["x"]
            file.create_dataset("x", data=x, **options)
        return set(np.diff(Dataset.open(path).block_starts)[:-1].tolist())

    assert lengths(chunks=(2 * rows, 1024), compression="gzip") == {2 * rows}  # never decompressed in part
    assert lengths(chunks=(2 * rows, 1024)) == {rows}  # plain data can be read in any piece
    assert lengths(chunks=(100, 512), compression="gzip") == {200}
    assert lengths() == {rows}


def test_each_block_is_read_once_while_the_cache_holds_it(write_shards, monkeypatch) -> None:
    folder, x, _ = write_shards([40, 40], x_chunk=10, y_chunk=80)
    monkeypatch.setattr(hdf5_module, "TARGET_BLOCK_BYTES", 60)
    dataset = Dataset.open(folder)
    reads = []
    original = h5py.Dataset.read_direct
    monkeypatch.setattr(h5py.Dataset, "read_direct", lambda self, *a: (reads.append(self.name), original(self, *a))[1])
    for ids in np.random.default_rng(0).permutation(80).reshape(8, 10):
        assert np.array_equal(read(dataset, ids.tolist())[0], x[ids])
    assert reads.count("/x") == 8


def test_an_epoch_of_block_shuffling_reads_each_block_once_from_a_small_cache(write_shards, monkeypatch) -> None:
    folder, x, _ = write_shards([400, 400], x_chunk=10, y_chunk=400)
    monkeypatch.setattr(hdf5_module, "TARGET_BLOCK_BYTES", 60)
    dataset = Dataset.open(folder, cache_bytes=16 * 60 * 7 // 6)  # 16 of 80 blocks of x, four times the window
    dataset.shuffle_window = 4
    reads = []
    original = h5py.Dataset.read_direct
    monkeypatch.setattr(h5py.Dataset, "read_direct", lambda self, *a: (reads.append(self.name), original(self, *a))[1])
    for ids in dataset.order(0, 0).reshape(80, 10):
        assert np.array_equal(read(dataset, ids.tolist())[0], x[ids])
    assert reads.count("/x") == 80


def test_the_least_recently_used_block_makes_room(write_shards, monkeypatch) -> None:
    folder, _, _ = write_shards([30], x_chunk=10, y_chunk=30)
    monkeypatch.setattr(hdf5_module, "TARGET_BLOCK_BYTES", 60)
    dataset = Dataset.open(folder, cache_bytes=2 * 60 * 7 // 6)  # two blocks of x: inputs get 6 of each 7 bytes
    reads = []
    original = h5py.Dataset.read_direct

    def counting(self, out, rows) -> None:
        if self.name == "/x":
            reads.append(rows.start)
        original(self, out, rows)

    monkeypatch.setattr(h5py.Dataset, "read_direct", counting)
    for sample in (0, 10, 1, 20, 2, 11):
        read(dataset, [sample])
    assert reads == [0, 10, 20, 10]


def test_numbers_arrive_in_native_order_and_half_precision_is_widened(write_file) -> None:
    x = np.arange(6, dtype=">f4").reshape(3, 2)
    y = np.arange(3, dtype=np.float16)
    dataset = Dataset.open(write_file("a.h5", {"x": x, "y": y}))
    assert (dataset.input_dtype, dataset.target_dtype) == (np.dtype("=f4"), np.dtype(np.float32))
    assert dataset.input_dtype.isnative
    x_read, y_read = read(dataset, [2, 0])
    assert np.array_equal(x_read, x[[2, 0]])
    assert np.array_equal(y_read, y[[2, 0]])


def test_arrays_in_groups_can_be_named(write_file) -> None:
    path = write_file("a.hdf5", {"train/images": np.ones((3, 2)), "train/labels": np.zeros(3, np.int32)})
    dataset = Dataset.open(path, inputs="train/images", targets="train/labels")
    assert dataset.num_samples == 3


def test_one_file_a_glob_and_a_folder_are_datasets_in_natural_order(write_file, tmp_path) -> None:
    for index in (10, 2, 1):
        write_file(f"part-{index}.h5", {"x": np.full((1, 1), index), "y": np.zeros(1)})
    (tmp_path / "notes.txt").write_text("not data")
    (tmp_path / ".part-3.h5").write_text("somebody's half-written file")
    assert [read(Dataset.open(tmp_path), [i])[0].item() for i in range(3)] == [1, 2, 10]
    assert Dataset.open(tmp_path / "part-2.h5").num_samples == 1
    assert Dataset.open(str(tmp_path / "part-1*.h5")).num_samples == 2


def test_many_files_need_few_open_ones(write_file, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(hdf5_module, "MAX_OPEN_FILES", 2)
    for index in range(5):
        write_file(f"{index}.h5", {"x": np.full((4, 1), index), "y": np.full(4, index)})
    dataset = Dataset.open(tmp_path, cache_bytes=0)
    ids = [19, 0, 8, 4, 12, 1, 16]
    assert read(dataset, ids)[0].ravel().tolist() == [i // 4 for i in ids]
    assert len(dataset._files._open) <= 2


def test_files_are_opened_read_only_and_lazily_and_again_after_close(write_shards) -> None:
    folder, x, _ = write_shards([6])
    (folder / "part-0.h5").chmod(0o400)
    dataset = Dataset.open(folder)
    assert not dataset._files._open
    read(dataset, [1])
    dataset.close()
    assert not dataset._files._open
    assert np.array_equal(read(dataset, [2])[0][0], x[2])


def test_threads_can_read_at_once(write_shards, monkeypatch) -> None:
    folder, x, y = write_shards([50, 30], x_chunk=8, y_chunk=5)
    monkeypatch.setattr(hdf5_module, "TARGET_BLOCK_BYTES", 48)
    dataset = Dataset.open(folder, cache_bytes=200)
    wrong = []

    def work(seed: int) -> None:
        for ids in np.random.default_rng(seed).integers(0, 80, (50, 9)):
            x_read, y_read = read(dataset, ids.tolist())
            if not (np.array_equal(x_read, x[ids]) and np.array_equal(y_read, y[ids])):
                wrong.append(ids)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_fingerprint_tells_data_apart_and_not_places(write_file, tmp_path) -> None:
    arrays = {"x": np.zeros((8, 2)), "y": np.zeros(8)}
    first = Dataset.open(write_file("a/1.h5", arrays)).fingerprint
    assert Dataset.open(write_file("b/2.h5", arrays)).fingerprint == first
    assert Dataset.open(write_file("c.h5", {**arrays, "y": np.zeros(8, np.int8)})).fingerprint != first
    assert Dataset.open(write_file("d.h5", {"x": np.zeros((9, 2)), "y": np.zeros(9)})).fingerprint != first


def test_wrong_calls_are_refused(write_shards) -> None:
    folder, _, _ = write_shards([5])
    dataset = Dataset.open(folder)
    with pytest.raises(IndexError, match=r"\[0, 5\)"):
        read(dataset, [5])
    with pytest.raises(IndexError):
        read(dataset, [-1])
    with pytest.raises(ValueError, match="inputs: need a C-contiguous"):
        dataset.read(np.arange(2), np.empty((2, 3, 2), np.float32), np.empty(2, np.uint8))


# Bad input


def test_nothing_there_is_said_plainly(tmp_path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such file, folder or match.*hpdl data convert"):
        Dataset.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no \.h5 or \.hdf5 file in the folder"):
        Dataset.open(tmp_path)


def test_an_absent_array_lists_those_that_are_there(write_file) -> None:
    path = write_file("a.h5", {"images": np.zeros((2, 2)), "group/labels": np.zeros(2)})
    with pytest.raises(InputError, match=r"a\.h5: no array 'x'. Found group/labels, images\. Set data\.inputs"):
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
        read(dataset, [0, int(bad)])
    assert np.array_equal(read(dataset, [0, 1500])[0], x[[0, 1500]])


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


def test_a_missing_or_doubled_shard_is_noticed_by_name_and_by_attribute(tmp_path) -> None:
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
    with pytest.raises(InputError, match="shards are missing"):
        Dataset.open(folder)
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
