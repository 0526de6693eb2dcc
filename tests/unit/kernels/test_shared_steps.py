"""Steps on shared memory, one at a time."""

from __future__ import annotations

import numpy as np
import pytest

from hpdl_mpi.base.memory import aligned
from hpdl_mpi.kernels.shared_steps import (
    COPY,
    READ,
    READ_REDUCE,
    REDUCE_BOTH,
    SIGNAL,
    STREAM,
    STREAM_READ,
    WAIT,
    run_steps,
)

SIZE = 300


def run(steps: list[tuple[int, int, int, int, int]], dtype: type = np.float32) -> tuple[np.ndarray, ...]:
    """Run steps on an array of 0, 1, ... and on memory of -1, -2, ...; return both, and the signals."""
    array, memory = np.arange(SIZE, dtype=dtype), aligned(SIZE, dtype)
    memory[:] = -np.arange(1, SIZE + 1)
    signals, raised, awaited = np.zeros(16, np.int64), np.zeros(2, np.int64), np.zeros(2, np.int64)
    position = run_steps(np.array(steps, np.int64), 0, 3, array, memory, signals, raised, awaited)
    return position, array, memory, signals


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("op", [COPY, STREAM])
@pytest.mark.parametrize("start", [0, 1, 5])
@pytest.mark.parametrize("place", [0, 3, 16, 31])
@pytest.mark.parametrize("size", [0, 1, 7, 16, 64, 200])
def test_copies_reach_their_place_and_nothing_else(op: int, start: int, place: int, size: int, dtype: type) -> None:
    position, array, memory, _ = run([(op, start, start + size, place, 0)], dtype)
    expected = -np.arange(1, SIZE + 1, dtype=dtype)
    expected[place : place + size] = np.arange(start, start + size)
    assert position == 1
    np.testing.assert_array_equal(memory, expected)
    np.testing.assert_array_equal(array, np.arange(SIZE))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("op", [READ, STREAM_READ])
@pytest.mark.parametrize("start", [0, 1, 5, 17])
@pytest.mark.parametrize("place", [0, 3, 16])
@pytest.mark.parametrize("size", [0, 1, 7, 16, 64, 200])
def test_reads_reach_their_place_and_nothing_else(op: int, start: int, place: int, size: int, dtype: type) -> None:
    position, array, memory, _ = run([(op, start, start + size, place, 0)], dtype)
    expected = np.arange(SIZE, dtype=dtype)
    expected[start : start + size] = -np.arange(place + 1, place + size + 1)
    assert position == 1
    np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(memory, -np.arange(1, SIZE + 1))


def test_reads_copy_or_add() -> None:
    _, array, memory, _ = run([(READ, 2, 5, 10, 0), (READ_REDUCE, 4, 6, 0, 0)])
    assert array[:7].tolist() == [0, 1, -11, -12, -13 - 1, 5 - 2, 6]
    np.testing.assert_array_equal(memory, -np.arange(1, SIZE + 1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("start", "place", "size"), [(0, 0, 0), (3, 5, 1), (5, 0, 64), (1, 17, 200)])
def test_sums_go_to_both_and_nowhere_else(start: int, place: int, size: int, dtype: type) -> None:
    _, array, memory, _ = run([(REDUCE_BOTH, start, start + size, place, 0)], dtype)
    expected, there = np.arange(SIZE, dtype=dtype), -np.arange(1, SIZE + 1, dtype=dtype)
    expected[start : start + size] += there[place : place + size]
    there[place : place + size] = expected[start : start + size]
    np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(memory, there)


def test_a_wait_ends_with_its_signal_and_each_signal_ends_one_wait() -> None:
    signal, wait = (SIGNAL, 0, 0, 8, 1), (WAIT, 0, 0, 8, 0)
    assert run([wait, signal])[0] == 0
    assert run([signal, wait, wait])[0] == 2
    position, *_, signals = run([signal, signal, wait, wait])
    assert position == 4
    assert signals[8] == 2
