from __future__ import annotations

import subprocess
import sys
import threading
import tracemalloc
from itertools import chain, islice

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data import Batch, Dataset, Loader, Transform
from hpdl_mpi.kernels.jit import counted_allocations


@pytest.fixture
def dataset(write_shards) -> Dataset:
    folder, _, _ = write_shards([13, 9, 11])
    return Dataset.open(folder)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "hpdl-loader"]


def ids_of(loader: Loader, epoch: int, **options) -> list[list[int]]:
    return [batch.sample_ids.tolist() for batch in loader.epoch(epoch, **options)]


def test_batches_hold_transformed_samples_of_the_epoch_in_order(write_shards) -> None:
    folder, x, y = write_shards([13, 9, 11])
    dataset = Dataset.open(folder)
    loader = Loader(dataset, global_batch_size=8, seed=5, transform=Transform(scale=0.5, mean=1.0))
    for epoch in range(2):
        order = dataset.order(5, epoch)
        offset = 0
        for batch in loader.epoch(epoch):
            ids = order[offset : offset + 8]
            assert isinstance(batch, Batch)
            assert (batch.offset, batch.global_size) == (offset, len(ids))
            assert np.array_equal(batch.sample_ids, ids)
            assert np.array_equal(batch.inputs, x[ids].astype(np.float32) * 0.5 - 1)
            assert np.array_equal(batch.targets, y[ids])
            assert (batch.inputs.dtype, batch.targets.dtype) == (np.float32, np.int64)
            assert batch.inputs.flags.c_contiguous
            assert batch.inputs.ctypes.data % 64 == 0
            offset += len(ids)
        assert offset == 33


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 40), st.integers(1, 33), st.sampled_from(["block", "global", "none"]), st.integers(0, 3))
def test_every_world_size_sees_the_same_global_batches(dataset, batch_size, dp_size, shuffle, epoch) -> None:
    def loader(rank: int, size: int) -> Loader:
        return Loader(dataset, global_batch_size=batch_size, seed=1, shuffle=shuffle, dp_rank=rank, dp_size=size)

    alone = ids_of(loader(0, 1), epoch)
    ranks = [ids_of(loader(rank, dp_size), epoch) for rank in range(dp_size)]
    assert [list(chain(*shares)) for shares in zip(*ranks, strict=True)] == alone


def test_a_rank_whose_share_is_empty_still_takes_part(dataset) -> None:
    loader = Loader(dataset, global_batch_size=2, dp_rank=0, dp_size=3)
    batches = [(batch.inputs.shape, batch.targets.shape, batch.global_size) for batch in loader.epoch(0)]
    assert len(batches) == 17
    assert batches[0] == ((0, 3, 2), (0,), 2)


@pytest.mark.parametrize("done", [0, 8, 16, 13, 32, 33])
def test_offset_resumes_exactly_in_mid_epoch(dataset, done) -> None:
    order = dataset.order(0, 4).tolist()
    assert list(chain(*ids_of(Loader(dataset, global_batch_size=8), 4, offset=done))) == order[done:]


def test_offset_and_size_of_a_batch_are_the_state_to_resume_from(dataset) -> None:
    loader = Loader(dataset, global_batch_size=8, dp_rank=1, dp_size=2)
    whole = ids_of(loader, 0)
    for index, batch in enumerate(loader.epoch(0)):
        if index == 1:
            state = batch.offset + batch.global_size
            break
    assert ids_of(loader, 0, offset=state) == whole[2:]


def test_limit_counts_samples(dataset) -> None:
    loader = Loader(dataset, global_batch_size=8)
    assert [len(ids) for ids in ids_of(loader, 0, offset=8, limit=12)] == [8, 4]
    assert ids_of(loader, 0, limit=0) == []
    assert len(ids_of(loader, 0, limit=1000)) == 5


def test_targets_take_their_form_from_their_type(write_file) -> None:
    x = np.zeros((4, 1))

    def targets(y: np.ndarray, **options) -> np.ndarray:
        loader = Loader(
            Dataset.open(write_file("a.h5", {"x": x, "y": y})), global_batch_size=4, shuffle="none", **options
        )
        batch = next(loader.epoch(0))
        assert batch.targets.shape[1:] == loader.target_shape
        assert batch.targets.dtype == loader.target_dtype
        return batch.targets.copy()

    for labels in (np.array([3, 1, 0, 2], np.uint8), np.array([[3], [1], [0], [2]], np.int64)):
        assert targets(labels).tolist() == [3, 1, 0, 2]
        assert targets(labels).dtype == np.int64
    assert targets(np.array([True, False, True, True])).tolist() == [1, 0, 1, 1]
    values = np.array([1.5, 2.5, 3.5, 4.5])
    assert targets(values).tolist() == values[:, None].tolist()
    assert targets(values).dtype == np.float32
    assert targets(values, dtype=np.float64).dtype == np.float64
    assert targets(values, target_transform=Transform(mean=1.5, std=0.5)).ravel().tolist() == [0, 2, 4, 6]
    assert targets(np.arange(8.0).reshape(4, 2)).tolist() == np.arange(8.0).reshape(4, 2).tolist()
    assert targets(np.arange(4), target_transform=Transform(scale=0.5)).tolist() == [[0], [0.5], [1], [1.5]]


def test_arrays_are_borrowed_and_buffers_used_again(dataset) -> None:
    loader = Loader(dataset, global_batch_size=3, depth=2)
    addresses = {batch.inputs.ctypes.data for batch in loader.epoch(0)}
    assert len(addresses) == 3


def test_read_ahead_never_writes_into_the_batch_that_is_in_use(write_shards) -> None:
    folder, x, _ = write_shards([200])
    dataset = Dataset.open(folder)
    loader = Loader(dataset, global_batch_size=4, depth=1)
    started = threading.Event()
    original = dataset.read
    reads = []

    def read(ids, *out) -> None:
        reads.append(ids)
        original(ids, *out)
        if len(reads) >= 2:
            started.set()

    dataset.read = read
    batches = loader.epoch(0)
    batch = next(batches)
    assert started.wait(10)  # the next batch has been read by now
    assert np.array_equal(batch.inputs, x[batch.sample_ids])
    assert len(reads) == 2  # one ahead, as asked, and no further
    batches.close()


def test_leaving_early_stops_the_thread(dataset) -> None:
    loader = Loader(dataset, global_batch_size=2)
    for _ in loader.epoch(0):
        assert len(threads()) == 1
        break
    assert not threads()
    batches = loader.epoch(0)
    next(batches)
    batches.close()
    assert not threads()
    assert len(ids_of(loader, 0)) == 17
    assert not threads()


@pytest.mark.parametrize("ending", ["pass", "raise SystemExit(0)"])
def test_a_program_ends_while_an_iterator_is_alive(write_shards, ending) -> None:
    folder, _, _ = write_shards([500])
    program = f"""
from hpdl_mpi.data import Dataset, Loader
loader = Loader(Dataset.open({str(folder)!r}), global_batch_size=2)
batches = loader.epoch(0)
next(batches)
{ending}
"""
    subprocess.run([sys.executable, "-c", program], timeout=60, check=True)


def test_two_iterators_of_one_loader_are_refused(dataset) -> None:
    loader = Loader(dataset, global_batch_size=2)
    first = loader.epoch(0)
    next(first)
    with pytest.raises(RuntimeError, match="another iterator of this loader is alive"):
        next(loader.epoch(0))
    assert next(first).offset == 2
    first.close()
    assert next(iter(loader.epoch(0))).offset == 0


def test_an_error_in_the_thread_reaches_the_consumer_with_its_traceback(dataset) -> None:
    loader = Loader(dataset, global_batch_size=8)
    original = dataset.read
    calls = []

    def failing_read(*args) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise InputError("damaged", where="part-1.h5")
        original(*args)

    dataset.read = failing_read
    batches = loader.epoch(0)
    assert [batch.offset for batch in islice(batches, 2)] == [0, 8]
    with pytest.raises(InputError, match=r"part-1\.h5: damaged") as caught:
        next(batches)
    assert "failing_read" in [entry.name for entry in caught.traceback]
    assert not threads()
    assert len(ids_of(loader, 0)) == 5  # and the loader can be used again


def allocated_by_batches(loader: Loader, number: int) -> tuple[int, int]:
    """Return the bytes of arrays that so many batches of a steady epoch add at their peak, and the kernels' blocks."""
    for epoch in range(2):
        for _ in loader.epoch(epoch):
            pass
    batches = loader.epoch(2)
    for _ in range(3):
        next(batches)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    with counted_allocations() as count:
        handed = sum(1 for _ in islice(batches, number))
        blocks = count()
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    batches.close()
    assert handed == number
    return peak, blocks


def test_a_steady_epoch_allocates_no_array_per_batch(write_shards) -> None:
    folder, _, _ = write_shards([4000], sample=(32,), x_chunk=100, y_chunk=100)
    loader = Loader(Dataset.open(folder), global_batch_size=100, transform=Transform(scale=1 / 255, mean=0.5, std=0.5))
    peak, blocks = allocated_by_batches(loader, 30)
    # The smallest array of a batch, its ids, has 800 bytes; 8 KiB is room for views, tuples and messages of the queue.
    assert peak < 8192
    # A kernel takes no memory: Numba wraps 2 x 7 arrays for the gathers and 4 for the transform of each batch, and the
    # thread is at most three batches ahead.
    assert blocks <= 33 * 18


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_batch_size": 0}, "global_batch_size: out of range. Found 0; expected an integer above 0"),
        ({"global_batch_size": 2.5}, r"global_batch_size: out of range\. Found 2\.5"),
        ({"global_batch_size": 4, "seed": -1}, "seed: out of range. Found -1; expected an integer of at least 0"),
        ({"global_batch_size": 4, "shuffle": "blok"}, "shuffle: out of range. Found 'blok'; expected block or global"),
        (
            {"global_batch_size": 4, "dp_size": 34},
            r"fewer samples than ranks.*33 samples for 34 data-parallel ranks\. Start fewer ranks",
        ),
        ({"global_batch_size": 4, "transform": Transform(layout="chw")}, r"transform\.layout"),
    ],
)
def test_impossible_loaders_are_refused(dataset, options, message) -> None:
    with pytest.raises(InputError, match=message):
        Loader(dataset, **options)


def test_integer_targets_of_many_numbers_are_refused(write_file) -> None:
    dataset = Dataset.open(write_file("a.h5", {"x": np.zeros((4, 1)), "y": np.zeros((4, 10), np.int32)}))
    with pytest.raises(InputError, match=r"y: integer targets must be one class.*shape \(10,\)"):
        Loader(dataset, global_batch_size=2)


def test_a_label_too_large_for_a_class_number_is_told_as_it_is(write_file) -> None:
    labels = np.array([0, 1, 2**64 - 1, 1], np.uint64)
    dataset = Dataset.open(write_file("a.h5", {"x": np.zeros((4, 1)), "y": labels}))
    with (
        pytest.raises(InputError, match=rf"a\.h5: sample 2: data\.targets: .*Found {2**64 - 1}; expected"),
        dataset.naming_files(),
    ):
        next(Loader(dataset, global_batch_size=4).epoch(0))
