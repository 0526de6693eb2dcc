"""The pool of buffers: who holds what, and what is used again."""

from __future__ import annotations

from itertools import combinations, pairwise, permutations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from hpdl_mpi.base.memory import ALIGNMENT, heap
from hpdl_mpi.nn import Pool
from hpdl_mpi.nn import pool as pool_module


@pytest.fixture
def pool() -> Pool:
    return Pool()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (5, 3)])
def test_arrays_have_the_shape_and_dtype_asked_for_and_are_aligned(pool: Pool, shape: tuple, dtype: type) -> None:
    array = pool.take(shape, dtype)
    assert (array.shape, array.dtype) == (shape, dtype)
    assert array.flags.c_contiguous
    assert not array.size or array.ctypes.data % ALIGNMENT == 0
    pool.release(array)
    assert pool.bytes_live == 0


def test_buffer_given_back_is_handed_out_again(pool: Pool) -> None:
    first = pool.take((10, 10), np.float32)
    address = first.ctypes.data
    pool.release(first)
    assert pool.take((100,), np.float32).ctypes.data == address
    assert pool.bytes_held == 448


def test_buffer_in_use_is_not_handed_out(pool: Pool) -> None:
    first = pool.take((100,), np.float32)
    assert not np.shares_memory(first, pool.take((100,), np.float32))


def test_what_an_extent_was_measured_of_can_be_held_as_a_whole(pool: Pool) -> None:
    pool.release(pool.take((1000,), np.uint8))
    pool.measure_extent()
    first, second = (pool.take((100,), np.float32) for _ in range(2))
    pool.release((first, second))
    assert pool.extent == (896,)
    held = pool.take_extent(pool.extent)
    assert pool.bytes_live == 896
    assert all(np.shares_memory(array, held[0]) for array in (first, second))
    assert not np.shares_memory(pool.take((10,), np.uint8), held[0])
    pool.release(held)
    assert pool.bytes_live == 64


def test_an_extent_goes_over_all_pieces_of_memory(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_SEGMENT_BYTES", 128)
    for _ in range(2):
        pool.measure_extent()
        arrays = [pool.take((128,), np.uint8) for _ in range(2)]
        pool.release(tuple(arrays))
    assert pool.extent == (128, 128)
    held = pool.take_extent((0, 128))
    assert pool.bytes_live == 128
    pool.release(held)
    pool.release(pool.take_extent(pool.extent))
    assert pool.bytes_live == 0
    assert pool.bytes_held == 256


def test_each_hold_must_be_let_go(pool: Pool) -> None:
    array = pool.take((100,), np.float32)
    pool.retain(array)
    pool.release(array)
    assert pool.bytes_live == 448
    pool.release(array)
    assert pool.bytes_live == 0


def test_views_count_as_the_array_that_they_view(pool: Pool) -> None:
    array = pool.take((10, 10), np.float32)
    pool.retain(array.reshape(4, 25)[1:])
    pool.release(array)
    assert pool.bytes_live == 448
    pool.release(array.view(np.uint8)[..., 3])
    assert pool.bytes_live == 0


def test_members_of_a_tuple_are_held_one_by_one(pool: Pool) -> None:
    pair = pool.take((100,), np.float32), pool.take((100,), np.float32)
    pool.retain((*pair, None))
    pool.release(pair)
    pool.release(pair[0])
    assert pool.bytes_live == 448
    pool.release(pair[1])
    assert pool.bytes_live == 0


@pytest.mark.parametrize("value", [None, 7, (3, 4), np.zeros(100), np.zeros(100)[1:]])
def test_what_did_not_come_from_the_pool_is_let_pass(pool: Pool, value: object) -> None:
    pool.take((100,), np.float64)
    pool.retain(value)
    pool.release(value)
    pool.release(value)
    assert (pool.bytes_live, pool.bytes_held) == (832, 832)


def test_short_batch_uses_the_memory_of_a_full_one(pool: Pool) -> None:
    pool.release(pool.take((128, 100), np.float32))
    short = [pool.take((32, 100), np.float32) for _ in range(4)]
    assert not any(np.shares_memory(short[0], other) for other in short[1:])
    assert pool.bytes_held == 128 * 100 * 4


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_neighbours_that_are_given_back_make_room_for_a_large_array(pool: Pool, order: tuple[int, ...]) -> None:
    parts = [pool.take((100, 16), np.float32) for _ in range(3)]
    for number in order:
        pool.release(parts[number])
    whole = pool.take((300, 16), np.float32)
    assert all(np.shares_memory(whole, part) for part in parts)
    assert pool.bytes_held == whole.nbytes


def test_first_hole_that_is_large_enough_is_taken(pool: Pool) -> None:
    arrays = [pool.take((size,), np.uint8) for size in (64, 64, 192, 64, 128)]
    addresses = [array.ctypes.data for array in arrays]
    for number in (0, 2, 4):
        pool.release(arrays[number])
    assert pool.take((100,), np.uint8).ctypes.data == addresses[2]
    assert pool.take((64,), np.uint8).ctypes.data == addresses[0]
    assert pool.take((64,), np.uint8).ctypes.data == addresses[2] + 128


def test_array_larger_than_a_segment_has_one_of_its_own(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_SEGMENT_BYTES", 128)
    arrays = [pool.take((size,), np.uint8) for size in (64, 192, 64, 64)]
    pairs = combinations(arrays, 2)
    assert not any(np.shares_memory(one, other) for one, other in pairs)
    assert pool.bytes_held == 64 + 192 + 64 + 64
    pool.release(tuple(arrays))
    assert pool.bytes_live == 0


def test_where_addresses_are_limited_no_more_are_asked_for_than_needed(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def scarce(nbytes: int) -> np.ndarray:
        asked.append(nbytes)
        return heap(nbytes if nbytes < 2**30 else 2**62)

    monkeypatch.setattr(pool_module, "heap", scarce)
    assert pool.take((100,), np.uint8).size == 100
    assert asked == [2**30, 128]


def test_peak_is_the_most_that_was_live(pool: Pool) -> None:
    first, second = pool.take((64,), np.uint8), pool.take((128,), np.uint8)
    pool.release(first)
    pool.release(second)
    pool.take((64,), np.uint8)
    assert (pool.bytes_live, pool.peak_live, pool.bytes_held) == (64, 192, 192)


@pytest.mark.parametrize(("dtype", "poison"), [(np.float32, np.nan), (np.float64, np.nan), (np.uint8, 255)])
def test_poisoned_pool_hands_out_what_shows_when_it_is_read(dtype: type, poison: float) -> None:
    np.testing.assert_array_equal(Pool(poison=True).take((3,), dtype), np.full(3, poison, dtype))


class PoolMachine(RuleBasedStateMachine):
    """Take, hold, let go, in any order: live arrays keep their content, and the counts are those of a ledger."""

    holds = Bundle("holds")

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool()
        self.ledger: list[int] = []
        self.arrays: dict[int, np.ndarray] = {}

    @rule(target=holds, size=st.integers(0, 300))
    def take(self, size: int) -> int:
        mark = len(self.arrays) % 251
        array = self.pool.take((size,), np.uint8)
        array.fill(mark)
        number = len(self.arrays)
        self.arrays[number] = array
        self.ledger.append(number)
        return number

    @rule(target=holds, number=holds)
    def retain(self, number: int) -> int:
        self.pool.retain(self.arrays[number][:0].reshape(0, 1))
        self.ledger.append(number)
        return number

    @rule(number=consumes(holds))
    def release(self, number: int) -> None:
        self.pool.release(self.arrays[number])
        self.ledger.remove(number)

    @invariant()
    def live_arrays_are_apart_and_intact(self) -> None:
        live = {number: self.arrays[number] for number in self.ledger}
        for number, array in live.items():
            assert (array == number % 251).all()
        addresses = sorted((array.base.ctypes.data, array.base.nbytes) for array in live.values())
        assert all(start + size <= after for (start, size), (after, _) in pairwise(addresses))
        assert self.pool.bytes_live == sum(array.base.nbytes for array in live.values())
        assert self.pool.bytes_live <= self.pool.peak_live <= self.pool.bytes_held


TestPoolInAnyOrder = PoolMachine.TestCase
TestPoolInAnyOrder.settings = settings(max_examples=30, stateful_step_count=40)


def test_array_released_more_often_than_held_is_refused(pool: Pool) -> None:
    array = pool.take((4,), np.float32)
    pool.release(array)
    with pytest.raises(RuntimeError, match="released more often than it was held"):
        pool.release(array)
