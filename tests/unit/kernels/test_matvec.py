"""Products of few rows have the bits that the same rows have among many."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpdl_mpi.kernels.gemm import matmul
from hpdl_mpi.kernels.matvec import FEW
from hpdl_mpi.kernels.threads import set_threads
from tests.threads import needs_two_threads

MANY = 12
"""Rows that go by panels."""

SIZES = st.one_of(st.integers(1, 70), st.sampled_from([129, 512, 513, 1025]))


def products(rows: int, n: int, k: int, trans_b: bool, accumulate: bool, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Return the first rows of a product of many, and the product of these rows alone."""
    rng = np.random.default_rng(n + k)
    a = rng.normal(size=(MANY, k)).astype(dtype)
    b = rng.normal(size=(n, k) if trans_b else (k, n)).astype(dtype)
    many = rng.normal(size=(MANY, n)).astype(dtype)
    few = many.copy()
    matmul(a, b, many, trans_b=trans_b, accumulate=accumulate)
    matmul(a[:rows], b, few[:rows], trans_b=trans_b, accumulate=accumulate)
    return many[:rows], few[:rows]


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, FEW),
    n=SIZES,
    k=SIZES,
    trans_b=st.booleans(),
    accumulate=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_few_rows_have_the_bits_of_many(
    rows: int, n: int, k: int, trans_b: bool, accumulate: bool, dtype: type
) -> None:
    np.testing.assert_array_equal(*products(rows, n, k, trans_b, accumulate, dtype))


@needs_two_threads
@pytest.mark.parametrize("trans_b", [False, True])
def test_threads_share_columns_and_change_nothing(trans_b: bool) -> None:
    alone, _ = products(1, 131, 700, trans_b, True, np.float32)
    set_threads(2)
    try:
        _, shared = products(1, 131, 700, trans_b, True, np.float32)
    finally:
        set_threads(1)
    np.testing.assert_array_equal(alone, shared)


@pytest.mark.parametrize("trans_b", [False, True])
def test_a_nan_reaches_its_own_sums_alone(trans_b: bool) -> None:
    a, b = np.ones((1, 40), np.float32), np.ones((40, 40), np.float32)
    b[(7, 3) if trans_b else (3, 7)] = np.nan
    c = np.full((1, 40), np.nan, np.float32)
    matmul(a, b, c, trans_b=trans_b)
    assert np.flatnonzero(np.isnan(c[0])).tolist() == [7]
