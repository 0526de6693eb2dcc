from __future__ import annotations

import threading

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpdl_mpi.data import Dataset
from hpdl_mpi.data import hdf5 as hdf5_module
from hpdl_mpi.data.hdf5 import TARGET_BLOCK_BYTES


def read(dataset: Dataset, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    x = np.empty((len(ids), *dataset.input_shape), dataset.input_dtype)
    y = np.empty((len(ids), *dataset.target_shape), dataset.target_dtype)
    dataset.read(np.array(ids, np.int64), x, y)
    return x, y


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
    dataset = Dataset.open(folder)
    assert not dataset._files._open
    read(dataset, [1])
    assert [file.mode for file in dataset._files._open.values()] == ["r"]
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
