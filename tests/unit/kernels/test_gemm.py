"""Matrix products."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core.codegen import get_host_cpu_features

from hpdl_mpi.kernels import gemm
from hpdl_mpi.kernels.gemm import matmul
from hpdl_mpi.kernels.threads import set_threads

FLOATS = [np.float32, np.float64]
RUN = 512
"""Of so many terms at most a sum of float32 is made at once."""


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(4, 7, 5), (1, 6, 3), (6, 1, 3), (1, 1, 1), (0, 3, 2), (3, 0, 2), (3, 2, 0), (50, 40, 30), (7, 130, 700)],
)
def test_product_is_that_of_numpy_for_every_flag(m: int, n: int, k: int, dtype: type) -> None:
    rng = np.random.default_rng(0)
    for trans_a, trans_b, accumulate in itertools.product((False, True), repeat=3):
        a: np.ndarray = rng.normal(size=(k, m) if trans_a else (m, k)).astype(dtype)
        b: np.ndarray = rng.normal(size=(n, k) if trans_b else (k, n)).astype(dtype)
        c: np.ndarray = rng.normal(size=(m, n)).astype(dtype)
        left, right = (x.astype(np.longdouble) for x in (a.T if trans_a else a, b.T if trans_b else b))
        exact = left @ right + (c if accumulate else 0)
        # each of the k + 1 additions rounds a sum that is at most that of the terms' sizes, twice on some processors
        bound = 2 * (k + 1) * float(np.finfo(dtype).eps) * (abs(left) @ abs(right) + abs(c))
        matmul(a, b, c, trans_a=trans_a, trans_b=trans_b, accumulate=accumulate)
        assert (abs(c - exact) <= bound).all()


def integers(rng: np.random.Generator, shape: tuple[int, int], dtype: type, margin: int) -> tuple[np.ndarray, ...]:
    """Return a matrix of small integers, whose sums are exact, and the wider one, NaN elsewhere, that it lies in."""
    wide = np.full((shape[0] + 2 * margin, shape[1] + 2 * margin), np.nan, dtype)
    part = wide[margin : shape[0] + margin, margin : shape[1] + margin]
    part[:] = rng.integers(-8, 9, shape)
    return part, wide


def check_exactly(
    m: int,
    n: int,
    k: int,
    trans_a: bool,
    trans_b: bool,
    accumulate: bool,
    margin: int,
    dtype: type,
    onto: bool = False,
    biased: bool = False,
) -> None:
    """Multiply integers that lie inside wider matrices, and compare all of the wider result.

    With `onto` it is another matrix that the product is added to.
    """
    rng = np.random.default_rng(m + n + k)
    a, _ = integers(rng, (k, m) if trans_a else (m, k), dtype, margin)
    b, _ = integers(rng, (n, k) if trans_b else (k, n), dtype, margin)
    c, wide = integers(rng, (m, n), dtype, margin)
    product = (a.T if trans_a else a).astype(np.float64) @ (b.T if trans_b else b).astype(np.float64)
    expected = wide.copy()
    added = integers(rng, (m, n), dtype, margin + 1)[0] if onto else c
    bias = rng.integers(-8, 9, n).astype(dtype) if biased else None
    expected[margin : m + margin, margin : n + margin] = (
        product + (added if accumulate or onto else 0) + (0 if bias is None else bias)
    )
    if onto or not accumulate:
        c[:] = np.nan
    matmul(a, b, c, trans_a=trans_a, trans_b=trans_b, accumulate=added if onto else accumulate, bias=bias)
    np.testing.assert_array_equal(wide, expected)


SIZES = st.one_of(st.integers(0, 40), st.sampled_from([63, 64, 65, 129, RUN, RUN + 1]))


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.tuples(SIZES, SIZES, SIZES),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    margin=st.integers(0, 3),
    dtype=st.sampled_from(FLOATS),
    onto=st.booleans(),
    biased=st.booleans(),
)
def test_slices_of_any_size_give_the_exact_product_and_nothing_else_is_touched(
    sizes: tuple[int, int, int], flags: tuple[bool, bool, bool], margin: int, dtype: type, onto: bool, biased: bool
) -> None:
    check_exactly(*sizes, *flags, margin=margin, dtype=dtype, onto=onto, biased=biased)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("m", "n", "k"), [(1200, 70, 30), (300, 200, 2 * RUN + 5), (601, 5, RUN + 1), (130, 4200, RUN + 5)]
)
def test_matrices_of_many_blocks_give_the_exact_product(m: int, n: int, k: int, dtype: type, threads: int) -> None:
    set_threads(threads)
    try:
        for trans_a, trans_b in itertools.product((False, True), repeat=2):
            check_exactly(m, n, k, trans_a, trans_b, accumulate=True, margin=0, dtype=dtype)
            check_exactly(m, n, k, trans_a, trans_b, False, 0, dtype, onto=True, biased=True)
    finally:
        set_threads(1)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("k", [1, 3, 258])
def test_panels_packed_from_a_transposed_matrix_keep_to_their_part_of_the_workspace(k: int, dtype: type) -> None:
    panels = gemm._PACKED_BYTES // np.dtype(dtype).itemsize
    beside = gemm.workspace(np.dtype(dtype))[0, panels:]
    beside[:] = np.nan
    n = panels // k
    matmul(np.ones((1, k), dtype), np.ones((n, k), dtype), np.empty((1, n), dtype), trans_b=True)
    assert np.isnan(beside).all()


@pytest.mark.parametrize(("trans_a", "trans_b"), list(itertools.product((False, True), repeat=2)))
def test_bits_of_an_element_depend_on_its_row_and_column_alone(trans_a: bool, trans_b: bool) -> None:
    rng = np.random.default_rng(0)
    a: np.ndarray = rng.normal(size=(130, RUN + 70)).astype(np.float32)
    b: np.ndarray = rng.normal(size=(RUN + 70, 2100)).astype(np.float32)

    def product(rows: slice, columns: slice) -> np.ndarray:
        left, right = a[rows], b[:, columns]
        c: np.ndarray = np.zeros((left.shape[0], right.shape[1]), np.float32)
        matmul(
            np.ascontiguousarray(left.T if trans_a else left),
            np.ascontiguousarray(right.T if trans_b else right),
            c,
            trans_a=trans_a,
            trans_b=trans_b,
        )
        return c

    whole = product(slice(None), slice(None))
    for rows, columns in [(slice(0, 1), slice(None)), (slice(5, 17), slice(3, 70)), (slice(None), slice(2099, 2100))]:
        np.testing.assert_array_equal(product(rows, columns), whole[rows, columns])


_DIGEST = """
import hashlib
import numpy as np
from hpdl_mpi.kernels.processor import VECTOR_BYTES
from hpdl_mpi.kernels.gemm import matmul

rng = np.random.default_rng(0)
digest = hashlib.sha256()
for dtype in (np.float32, np.float64):
    for trans in (False, True):
        a, b, c = (rng.normal(size=size).astype(dtype) for size in ((320, 320), (320, 320), (320, 320)))
        wide = rng.normal(size=(37, 1030)).astype(dtype)
        product = np.zeros((37, 37), dtype)
        matmul(a, b, c, trans_a=trans, trans_b=trans, accumulate=True)
        matmul(wide, wide, product, trans_b=True)
        digest.update(c.tobytes() + product.tobytes())
print(VECTOR_BYTES, digest.hexdigest())
"""


def test_vectors_of_every_width_give_the_same_bits(tmp_path: Path) -> None:
    """A cluster's nodes may differ: processors with wide vectors and with narrow ones compute the same."""
    have = set(get_host_cpu_features().split(","))
    families = [{"+fma"}, {"+fma", "+avx2"}, {"+fma", "+avx2", "+avx512f"}, {"+neon"}]
    families = [features for features in families if features <= have]
    seen = {}
    for features in families:
        environment = {
            "NUMBA_CPU_NAME": "generic",
            "NUMBA_CPU_FEATURES": ",".join(features),
            "HPDL_CACHE_DIR": str(tmp_path),
        }
        command = [sys.executable, "-c", _DIGEST]
        output = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
        width, digest = output.stdout.split()
        seen[width] = digest
    assert len(seen) == len(families)
    assert len(set(seen.values())) <= 1


def test_content_of_the_result_is_ignored_unless_added_to() -> None:
    c = np.full((2, 2), np.nan)
    matmul(np.eye(2), np.eye(2), c)
    np.testing.assert_array_equal(c, np.eye(2))


def test_a_product_of_no_terms_is_what_it_is_added_to() -> None:
    c = np.full((2, 3), np.nan)
    matmul(np.zeros((2, 0)), np.zeros((0, 3)), c, accumulate=np.ones((2, 3)), bias=np.arange(3.0))
    np.testing.assert_array_equal(c, [[1, 2, 3], [1, 2, 3]])


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"accumulate": np.zeros((2, 3), np.float32)}, ValueError),
        ({"accumulate": np.zeros((2, 2))}, TypeError),
        ({"accumulate": np.zeros((2, 2), np.float32).T[::-1]}, ValueError),
        ({"bias": np.zeros(3, np.float32)}, ValueError),
        ({"bias": np.zeros((2, 2), np.float32)}, ValueError),
        ({"bias": np.zeros(4, np.float32)[::2]}, ValueError),
        ({"bias": np.zeros(2)}, TypeError),
    ],
)
def test_what_cannot_be_added_is_refused(settings: dict, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"added to a product|side by side"):
        matmul(lying((2, 2)), lying((2, 2)), lying((2, 2)), **settings)


def lying(shape: tuple[int, int]) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    "matrix",
    [
        np.asfortranarray(lying((2, 3))),
        lying((2, 6))[:, ::2],
        lying((6, 9))[:3, :2].T,
        lying((2, 3))[::-1],
        np.broadcast_to(np.float32(1), (2, 3)),
        np.zeros(2, np.dtype([("label", "u1"), ("x", "f4", (3,))]))["x"],
        np.zeros(25, np.uint8)[1:].view(np.float32).reshape(2, 3),
        np.zeros(3, np.float32),
        np.zeros((1, 2, 3), np.float32),
    ],
    ids=["columns", "every second", "transposed", "upside down", "one number", "records", "unaligned", "1-d", "3-d"],
)
@pytest.mark.parametrize("place", range(3))
def test_matrices_that_would_be_misread_are_refused(matrix: np.ndarray, place: int) -> None:
    matrices = [lying((2, 3)), lying((3, 3)), lying((2, 3))]
    matrices[place] = matrix
    with pytest.raises(ValueError, match="needs rows side by side"):
        matmul(*matrices)


@pytest.mark.parametrize(
    ("a", "b", "c"),
    [((2, 3), (2, 3), (2, 3)), ((2, 3), (3, 4), (3, 4)), ((2, 3), (3, 4), (2, 5)), ((2, 0), (3, 4), (2, 4))],
)
def test_shapes_that_do_not_fit_are_refused(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="do not give"):
        matmul(lying(a), lying(b), lying(c))


def test_rows_that_are_one_and_the_same_are_taken() -> None:
    row = np.arange(3, dtype=np.float32)
    c = lying((2, 2))
    matmul(np.broadcast_to(row, (2, 3)), np.broadcast_to(row, (2, 3)), c, trans_b=True)
    np.testing.assert_array_equal(c, 5.0)


@pytest.mark.parametrize("dtypes", [("f4", "f4", "f8"), ("f2", "f2", "f2"), ("i4", "i4", "i4")])
def test_other_dtypes_are_refused(dtypes: tuple[str, str, str]) -> None:
    with pytest.raises(TypeError, match="float32 or float64, all the same"):
        matmul(*(np.zeros((2, 2), dtype) for dtype in dtypes))


def test_a_thread_with_a_small_stack_can_multiply() -> None:
    results: list[np.ndarray] = []

    def multiply() -> None:
        c = lying((4, 4))
        matmul(lying((4, 4)) + 1, lying((4, 4)) + 1, c)
        results.append(c)

    before = threading.stack_size(256 * 1024)
    try:
        thread = threading.Thread(target=multiply)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    np.testing.assert_array_equal(results[0], 4.0)
