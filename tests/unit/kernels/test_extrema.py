"""The largest of many numbers."""

from __future__ import annotations

import numpy as np
import pytest

from hpdl_mpi.kernels.extrema import largest
from hpdl_mpi.kernels.jit import kernel


@kernel
def largest_of(row, least):
    return largest(row, row.dtype.type(least))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [0, 1, 2, 7, 15, 16, 17, 33, 100])
def test_it_is_found_wherever_it_lies(size: int, dtype: type) -> None:
    row = np.arange(size, dtype=dtype) - 200
    around = np.full(size + 2, np.inf, dtype)
    for shift in range(size):
        around[1:-1] = np.roll(row, shift)
        assert largest_of(around[1:-1], -np.inf) == size - 201
    assert largest_of(row, 5) == 5


def test_what_is_no_number_is_passed_over_and_infinity_is_not() -> None:
    row = np.array([np.nan, 1.0, np.nan, 3.0, -np.inf] * 5)
    assert largest_of(row, -np.inf) == 3
    row[7] = np.inf
    assert largest_of(row, -np.inf) == np.inf
    assert largest_of(np.full(20, np.nan), -np.inf) == -np.inf
