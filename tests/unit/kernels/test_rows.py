"""What is done to a row: whole vectors and what is left over."""

from __future__ import annotations

import numpy as np
import pytest

from hpdl_mpi.kernels.jit import kernel
from hpdl_mpi.kernels.rows import inner_product, largest, scale_row


@kernel
def largest_of(row, least):
    return largest(row, row.dtype.type(least))


@kernel
def product_of(row, other):
    return inner_product(row, other)


@kernel
def scale(row, factor):
    scale_row(row, row.dtype.type(factor))


sizes = pytest.mark.parametrize("size", [0, 1, 2, 7, 15, 16, 17, 33, 100])
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@dtypes
@sizes
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


@dtypes
@sizes
def test_products_are_summed_up_and_numbers_around_do_not_count(size: int, dtype: type) -> None:
    row, other = np.full((2, size + 2), np.nan, dtype)
    row[1:-1], other[1:-1] = np.arange(size) - 3, np.arange(size) % 7
    # whole numbers this small are exact in any order
    assert product_of(row[1:-1], other[1:-1]) == np.dot(row[1:-1].astype(float), other[1:-1].astype(float))


@dtypes
@sizes
def test_a_row_is_scaled_and_its_neighbours_are_not(size: int, dtype: type) -> None:
    around = np.arange(size + 2, dtype=dtype) + 1
    wanted = around.copy()
    wanted[1:-1] *= 0.5
    scale(around[1:-1], 0.5)
    np.testing.assert_array_equal(around, wanted)
