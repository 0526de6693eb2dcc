"""Products with a matrix that is packed once are those of `matmul`, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpdl_mpi.base.memory import aligned
from hpdl_mpi.kernels.gemm import matmul
from hpdl_mpi.kernels.packed import multiply_packed, pack, packed_size

SIZES = st.one_of(st.integers(0, 40), st.sampled_from([63, 64, 65, 129]))
DEPTHS = st.one_of(st.integers(1, 40), st.sampled_from([256, 257, 512, 513, 1030]))


@settings(max_examples=150, deadline=None)
@given(
    rows=SIZES,
    columns=SIZES,
    depth=DEPTHS,
    trans_b=st.booleans(),
    add=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_product_has_the_bits_of_matmul(
    rows: int, columns: int, depth: int, trans_b: bool, add: bool, dtype: type
) -> None:
    rng = np.random.default_rng(0)
    a, b, c = (
        rng.normal(size=shape).astype(dtype)
        for shape in ((rows, depth), (columns, depth) if trans_b else (depth, columns), (rows, columns))
    )
    expected = c.copy()
    matmul(a, b, expected, trans_b=trans_b, accumulate=add)
    guarded = aligned(packed_size(depth, columns, c.itemsize) + 64, dtype)
    guarded.fill(np.nan)
    packed = guarded[:-64]
    pack(b, trans_b, packed)
    assert np.isnan(guarded[-64:]).all()
    if not add:
        c.fill(np.nan)
    multiply_packed(a, packed, c, add)
    np.testing.assert_array_equal(c, expected)


@pytest.mark.parametrize("split", [1, 5, 6, 13])
def test_rows_have_the_same_bits_wherever_they_are_cut(split: int) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(20, 600)).astype(np.float32), rng.normal(size=(600, 70)).astype(np.float32)
    packed = aligned(packed_size(600, 70, 4), np.float32)
    pack(b, False, packed)
    whole, parts = np.empty((20, 70), np.float32), np.empty((20, 70), np.float32)
    multiply_packed(a, packed, whole, False)
    multiply_packed(a[:split], packed, parts[:split], False)
    multiply_packed(a[split:], packed, parts[split:], False)
    np.testing.assert_array_equal(parts, whole)
