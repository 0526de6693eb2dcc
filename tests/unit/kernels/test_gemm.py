"""Matrix products through BLAS."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hpdl_mpi.kernels.gemm import matmul


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("m", "n", "k"), [(4, 7, 5), (7, 4, 5), (1, 6, 3), (6, 1, 3), (1, 1, 1), (0, 3, 2), (3, 2, 0)])
def test_product_is_that_of_numpy_for_every_flag(m: int, n: int, k: int, dtype: type) -> None:
    rng = np.random.default_rng(0)
    for trans_a, trans_b, accumulate in itertools.product((False, True), repeat=3):
        a: np.ndarray = rng.normal(size=(k, m) if trans_a else (m, k)).astype(dtype)
        b: np.ndarray = rng.normal(size=(n, k) if trans_b else (k, n)).astype(dtype)
        c: np.ndarray = rng.normal(size=(m, n)).astype(dtype)
        expected = (a.T if trans_a else a) @ (b.T if trans_b else b) + (c if accumulate else 0)
        matmul(a, b, c, trans_a=trans_a, trans_b=trans_b, accumulate=accumulate)
        # k + 1 <= 6 terms of size 1 to 5, each rounded
        np.testing.assert_allclose(c, expected, rtol=0, atol=30 * float(np.finfo(dtype).eps))


def test_rows_may_lie_apart() -> None:
    rng = np.random.default_rng(0)
    wide = [rng.normal(size=(9, 11)) for _ in range(3)]
    a, b, c = wide[0][2:6, 3:8], wide[1][:7, 4:9], wide[2][1:5, 2:9]
    before = wide[2].copy()
    matmul(a, b, c, trans_b=True)
    np.testing.assert_allclose(c, a @ b.T, rtol=0, atol=1e-14)
    before[1:5, 2:9] = c
    np.testing.assert_array_equal(wide[2], before)


def test_content_of_the_result_is_ignored_unless_added_to() -> None:
    c = np.full((2, 2), np.nan)
    matmul(np.eye(2), np.eye(2), c)
    np.testing.assert_array_equal(c, np.eye(2))


FLAT = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("a", "message"),
    [
        (FLAT.astype(np.float64), "one dtype"),
        (np.asfortranarray(FLAT), "contiguous rows"),
    ],
)
def test_matrices_that_blas_would_misread_are_refused(a: np.ndarray, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        matmul(a, FLAT, np.zeros((2, 2), np.float32), trans_b=True)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(TypeError, match="gemm takes float32 or float64"):
        matmul(*(np.zeros((2, 2), np.float16) for _ in range(3)))
