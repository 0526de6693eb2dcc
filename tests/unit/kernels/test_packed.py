"""Products with a matrix that is packed once are those of `matmul`, to the bit."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.base.memory import aligned
from hpdl_mpi.kernels.gemm import _matmul, matmul, workspace
from hpdl_mpi.kernels.packed import PackedWeights, _pack, multiply_packed, pack, packed_shape
from hpdl_mpi.kernels.threads import max_threads, set_threads

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
    shape = packed_shape(depth, columns, c.itemsize)
    guarded = aligned(shape[0] * shape[1] + 64, dtype)
    guarded.fill(np.nan)
    packed = guarded[:-64].reshape(shape)
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
    packed = aligned(packed_shape(600, 70, 4), np.float32)
    pack(b, False, packed)
    whole, parts = np.empty((20, 70), np.float32), np.empty((20, 70), np.float32)
    multiply_packed(a, packed, whole, False)
    multiply_packed(a[:split], packed, parts[:split], False)
    multiply_packed(a[split:], packed, parts[split:], False)
    np.testing.assert_array_equal(parts, whole)


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    yield
    set_threads(1)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.one_of(st.integers(1, 40), st.sampled_from([133, 768, 769])),
    columns=SIZES,
    depth=st.one_of(st.just(0), DEPTHS),
    trans_b=st.booleans(),
    biased=st.booleans(),
    added=st.sampled_from(["nothing", "itself", "another"]),
    dtype=st.sampled_from([np.float32, np.float64]),
    threads=st.integers(1, min(2, max_threads())),
)
def test_matmul_has_the_same_bits_with_a_packer(
    rows: int, columns: int, depth: int, trans_b: bool, biased: bool, added: str, dtype: type, threads: int
) -> None:
    set_threads(threads)
    rng = np.random.default_rng(0)
    a, b, c, other = (
        rng.normal(size=shape).astype(dtype)
        for shape in ((rows, depth), (columns, depth) if trans_b else (depth, columns), *[(rows, columns)] * 2)
    )
    if added == "nothing":
        c.fill(np.nan)
    accumulate = {"nothing": False, "itself": True, "another": other}[added]
    bias = rng.normal(size=columns).astype(dtype) if biased else None
    expected, packer = c.copy(), PackedWeights()
    matmul(a, b, expected, trans_b=trans_b, accumulate=accumulate, bias=bias)
    matmul(a, b, c, trans_b=trans_b, accumulate=accumulate, bias=bias, packer=packer)
    np.testing.assert_array_equal(c, expected)
    assert bool(packer.nbytes) == (4 < rows <= 768 and columns > 0 and depth > 0)


@pytest.mark.parametrize("parts", [1, 2, 5])
@pytest.mark.parametrize("trans_b", [False, True])
def test_shares_of_a_matrix_are_packed_as_the_whole(trans_b: bool, parts: int) -> None:
    rng = np.random.default_rng(0)
    b, a = rng.normal(size=(300, 515) if trans_b else (515, 300)), rng.normal(size=(7, 515))
    expected, found = np.empty((7, 300)), np.empty((7, 300))
    matmul(a, b, expected, trans_b=trans_b)
    packed = aligned(packed_shape(515, 300, 8), np.float64)
    _pack(b, trans_b, packed, parts)
    multiply_packed(a, packed, found, False)
    np.testing.assert_array_equal(found, expected)


def test_weights_are_packed_once_until_they_are_renewed() -> None:
    rng = np.random.default_rng(0)
    a, joined, c = rng.normal(size=(9, 20)), rng.normal(size=(20, 24)), np.empty((9, 12))
    packer = PackedWeights()
    halves = joined[:, :12], joined[:, 12:]
    expected = []
    for half in halves:
        matmul(a, half, c, packer=packer)
        expected.append(c.copy())
        np.testing.assert_allclose(c, a @ half, rtol=0, atol=1e-13)
    nbytes = packer.nbytes
    joined *= 2
    for half, before in zip(halves, expected, strict=True):
        matmul(a, half, c, packer=packer)
        np.testing.assert_array_equal(c, before)  # nobody has said that they changed
    packer.renew()
    for half, before in zip(halves, expected, strict=True):
        matmul(a, half.view(), c, packer=packer)
        np.testing.assert_array_equal(c, 2 * before)
    assert packer.nbytes == nbytes


def test_what_is_renewed_is_what_was_asked_for() -> None:
    weights = np.zeros((3, 20, 24))
    packer = PackedWeights()
    panels = [packer.find(weight, False) for weight in weights]
    assert [panel[0, 0] for panel in panels] == [0, 0, 0]
    weights[...] = 1
    assert packer.renew() == 3
    assert [panel[0, 0] for panel in panels] == [1, 1, 1]
    assert packer.find(weights[1], False) is panels[1]
    weights[...] = 2
    assert packer.renew() == 1
    assert [panel[0, 0] for panel in panels] == [1, 2, 1]
    assert packer.find(weights[0], False) is panels[0]
    assert [panel[0, 0] for panel in panels] == [2, 2, 1]


@pytest.mark.parametrize("refuses", [False, True])
def test_where_memory_is_short_products_pack_for_themselves(refuses: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    a, first, second = rng.normal(size=(9, 20)), rng.normal(size=(20, 24)), rng.normal(size=(20, 24))
    expected, c = np.empty((9, 24)), np.empty((9, 24))
    nbytes = math.prod(packed_shape(20, 24, 8)) * 8

    def refuse(*arguments: object) -> np.ndarray:
        raise InputError("not enough memory")

    if refuses:
        monkeypatch.setattr("hpdl_mpi.kernels.packed.aligned", refuse)
    for spare, room in ((4 * nbytes - 1, 0), (4 * nbytes, 1), (8 * nbytes - 1, 1), (8 * nbytes, 2)):
        packer = PackedWeights(processes=3)

        def left(processes: int, spare: int = spare, packer: PackedWeights = packer) -> int:
            assert processes == 3
            return spare - packer.nbytes

        monkeypatch.setattr("hpdl_mpi.kernels.packed.spare", left)
        for _ in range(2):
            for b in (first, second):
                matmul(a, b, expected)
                matmul(a, b, c, packer=packer)
                np.testing.assert_array_equal(c, expected)
            assert packer.renew() == (0 if refuses else room)
        assert packer.nbytes == (0 if refuses else room * nbytes)


@pytest.mark.parametrize("parts", [2, 3, 7])
@pytest.mark.parametrize("rows", [5, 70, 300])
def test_shares_of_a_packed_product_have_the_same_bits(rows: int, parts: int) -> None:
    rng = np.random.default_rng(0)
    a, b, bias = rng.normal(size=(rows, 600)), rng.normal(size=(150, 600)), rng.normal(size=150)
    expected, c = np.empty((rows, 150)), np.full((rows, 150), np.nan)
    matmul(a, b, expected, trans_b=True, bias=bias)
    packed = PackedWeights().find(b, True)
    _matmul(a, packed, c, c, bias, False, True, True, False, np.empty((parts, workspace(a.dtype).shape[1])), parts)
    np.testing.assert_array_equal(c, expected)
