"""Winograd's method: the convolution of the definition, within a bound that is derived here."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpdl_mpi.base.memory import aligned
from hpdl_mpi.kernels import winograd, winograd_gradient
from hpdl_mpi.kernels.schemes import SCHEMES, Scheme, StridedBack, interpolation
from hpdl_mpi.kernels.threads import set_threads
from tests import reference as ref
from tests.threads import needs_two_threads

EVERY = [scheme for found in SCHEMES.values() for scheme in found]
STRIDE = {scheme: stride for (_, stride), found in SCHEMES.items() for scheme in found}

TRANSFORMS = 38
"""Roundings on the way of a number, beside the sum of products. A transform has two passes, in each of which a number
is multiplied once and added at most five times: 12, 8 and 12 for outputs, inputs and filters, whose entries are rounded
themselves: 2 more. Then there are the product, the sum of an edge's tiles, the bias, and the sum into a gradient."""


def bound(terms: int, dtype: np.dtype, absolute: np.ndarray) -> np.ndarray:
    """Return how large the error of sums of so many terms can be, where sums of absolute values are `absolute`.

    Higham (2002), lemma 3.1: n roundings of relative size u change a term by no more than n u / (1 - n u).
    """
    roundings = (terms + TRANSFORMS) * np.finfo(dtype).eps / 2
    return roundings / (1 - roundings) * absolute


def matrices(scheme: Scheme) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the absolute values of INPUT, OUTPUT and FILTER, the last with a row for each point."""
    filters = [scheme.FILTER[min(point, scheme.filters - 1)] for point in range(scheme.points)]
    return tuple(np.abs(np.array(matrix, float)) for matrix in (scheme.INPUT, scheme.OUTPUT, filters))


def tiles_of(image: np.ndarray, padding: tuple[int, int], tiles: tuple[int, int], step: int, size: int) -> np.ndarray:
    """Return the absolute values of so many of an image's tiles, (n, down, across, size, size, c), `step` apart."""
    top, left = padding
    down, across = tiles
    padded = np.zeros((len(image), step * down + size, step * across + size, image.shape[3]))
    place = padded[:, top : top + image.shape[1], left : left + image.shape[2]]
    place[...] = np.abs(image)[:, : place.shape[1], : place.shape[2]]
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))[:, ::step, ::step]
    return windows[:, :down, :across].transpose(0, 1, 2, 4, 5, 3)


def absolute_convolution(
    scheme: Scheme, x: np.ndarray, weight: np.ndarray, padding: tuple[int, int], output: tuple[int, int]
) -> np.ndarray:
    """Return the method's result with absolute values in all places, and no difference anywhere."""
    b, a, g = matrices(scheme)
    values = tiles_of(x, padding, scheme.tiles(*output), scheme.step, b.shape[1])
    values = np.einsum("ai,bj,nyxijc->nyxabc", b, b, values)
    filters = np.einsum("ai,bj,kijc->kabc", g, g, np.abs(weight.astype(float)))
    tiles = np.einsum("pa,qb,nyxabc,kabc->nypxqk", a, a, values, filters, optimize=True)
    n, down, step, across, _, k = tiles.shape
    return tiles.reshape(n, step * down, step * across, k)[:, : output[0], : output[1]]


def absolute_gradient(scheme: Scheme, x: np.ndarray, dy: np.ndarray, padding: tuple[int, int]) -> np.ndarray:
    """Return the same of the gradient for the weight."""
    b, a, g = matrices(scheme)
    tiles = scheme.tiles(*dy.shape[1:3])
    values = np.einsum("ai,bj,nyxijc->nyxabc", b, b, tiles_of(x, padding, tiles, scheme.step, b.shape[1]))
    gradients = np.einsum("pa,qb,nyxpqk->nyxabk", a, a, tiles_of(dy, (0, 0), tiles, scheme.tile, scheme.tile))
    points = np.einsum("nyxabk,nyxabc->kabc", gradients, values, optimize=True)
    return np.einsum("ai,bj,kabc->kijc", g, g, points)


class Rig:
    """Random arrays of a convolution, and scratch full of NaN.

    The image is as small as an output of that size allows, or, with stride 2, larger by `extra` rows and columns.
    """

    def __init__(
        self,
        scheme: Scheme,
        n: int,
        output: tuple[int, int],
        c: int,
        k: int,
        padding: tuple[int, int],
        dtype: str,
        extra: tuple[int, int] = (0, 0),
    ) -> None:
        rng = np.random.default_rng(0)
        self.scheme, self.dtype, self.padding, self.stride = scheme, np.dtype(dtype), padding, STRIDE[scheme]
        r = scheme.kernel
        height, width = (
            self.stride * (size - 1) + r - 2 * pad + more
            for size, pad, more in zip(output, padding, extra, strict=True)
        )
        self.x, self.weight, self.bias, self.dy = (
            rng.normal(size=shape).astype(dtype)
            for shape in ((n, height, width, c), (k, r, r, c), (k,), (n, *output, k))
        )

    def scratch(self, size: int) -> np.ndarray:
        array = aligned(size, self.dtype)
        array.fill(np.nan)
        return array

    def forward(self, bias: np.ndarray) -> np.ndarray:
        y = np.full_like(self.dy, np.nan)
        scratch = self.scratch(winograd.scratch_size(self.scheme, self.x.shape[3], y.shape, self.dtype))
        winograd.forward(self.scheme, self.x, self.weight, bias, self.padding, scratch, y)
        return y

    def backward_input(self) -> np.ndarray:
        dx = np.full_like(self.x, np.nan)
        back = winograd.back_of(self.scheme)
        scratch = self.scratch(winograd.scratch_size(back, self.dy.shape[3], dx.shape, self.dtype))
        winograd.backward_input(self.scheme, self.dy, self.weight, self.padding, scratch, dx)
        return dx

    def backward_weight(self) -> np.ndarray:
        sizes = self.scheme, self.x.shape[3], self.dy.shape, self.dtype
        dweights = np.zeros((winograd_gradient.num_parts(*sizes), *self.weight.shape), self.dtype)
        scratch = self.scratch(winograd_gradient.scratch_size(*sizes))
        winograd_gradient.backward_weight(self.scheme, self.x, self.dy, self.padding, scratch, dweights)
        return dweights.sum(0)


def check(rig: Rig) -> None:
    """Hold all three against the definition in float64."""
    x, weight, dy = (array.astype(float) for array in (rig.x, rig.weight, rig.dy))
    k, r, _, c = weight.shape
    scheme, size, stride = rig.scheme, dy.shape[1:3], (rig.stride, rig.stride)

    expected = ref.conv2d(x, weight, 0.0, stride=stride, padding=rig.padding)
    absolute = absolute_convolution(scheme, x, weight, rig.padding, size)
    assert (np.abs(rig.forward(rig.bias[:0]) - expected) <= bound(c, rig.dtype, absolute)).all()
    with_bias = expected + rig.bias.astype(float)
    assert (np.abs(rig.forward(rig.bias) - with_bias) <= bound(c, rig.dtype, absolute + np.abs(rig.bias))).all()

    # The gradient of the input is a convolution of dy, with zeros between its rows and columns if the stride is 2.
    turned = np.ascontiguousarray(weight[:, ::-1, ::-1].transpose(3, 1, 2, 0))
    inverse = r - 1 - rig.padding[0], r - 1 - rig.padding[1]
    wide = np.zeros(
        (len(dy), *(in_size + r - 1 - 2 * pad for in_size, pad in zip(x.shape[1:3], inverse, strict=True)), k)
    )
    wide[:, : rig.stride * size[0] : rig.stride, : rig.stride * size[1] : rig.stride] = dy
    expected = ref.conv2d(wide, turned, 0.0, padding=inverse)
    back = winograd.back_of(scheme)
    start = (0, 0) if isinstance(back, StridedBack) else inverse
    absolute = absolute_convolution(back, dy, turned, start, x.shape[1:3])
    assert (np.abs(rig.backward_input() - expected) <= bound(k, rig.dtype, absolute)).all()

    padded = np.pad(x, ((0, 0), *((pad, pad) for pad in rig.padding), (0, 0)))
    spans = [stride[0] * (length - 1) + 1 for length in size]
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=(1, 2))[
        :, :r, :r, :, :: rig.stride, :: rig.stride
    ]  # (n, r, r, c, ho, wo)
    expected = np.einsum("nijcyx,nyxk->kijc", windows, dy)
    # Points that share a value of the kernel share a sum.
    sharing = (scheme.points - scheme.filters + 1) ** 2
    terms = sharing * len(x) * math.prod(scheme.tiles(*size))
    absolute = absolute_gradient(scheme, x, dy, rig.padding)
    assert (np.abs(rig.backward_weight() - expected) <= bound(terms, rig.dtype, absolute)).all()


@given(
    scheme=st.sampled_from(EVERY),
    n=st.integers(1, 3),
    height=st.integers(1, 11),
    width=st.integers(1, 11),
    c=st.integers(1, 40),
    k=st.integers(1, 40),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    extra=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_every_shape_is_within_the_bound(
    scheme: Scheme,
    n: int,
    height: int,
    width: int,
    c: int,
    k: int,
    padding: tuple[int, int],
    extra: tuple[int, int],
    dtype: str,
) -> None:
    r, stride = scheme.kernel, STRIDE[scheme]
    if stride == 2:
        padding = 1, 1
    else:
        extra = 0, 0
    output = max(height, 2 * padding[0] + 2 - r), max(width, 2 * padding[1] + 2 - r)
    check(Rig(scheme, n, output, c, k, padding, dtype, extra))


F43, F23, F25, STRIDED = EVERY


@pytest.mark.parametrize(
    ("scheme", "n", "size", "c", "k"),
    [
        (F43, 5, 32, 16, 16),
        (F43, 40, 8, 64, 100),
        (F43, 3, 4, 300, 20),
        (F43, 3, 4, 20, 300),
        (F43, 13, 4, 512, 512),
        (F23, 5, 2, 520, 300),
        (STRIDED, 5, 16, 16, 70),
        (STRIDED, 3, 4, 256, 330),
    ],
)
def test_several_blocks_and_panels_are_within_the_bound(scheme: Scheme, n: int, size: int, c: int, k: int) -> None:
    check(Rig(scheme, n, (size, size), c, k, (1, 1), "float32"))


def choose_columns(monkeypatch: pytest.MonkeyPatch, by_columns: bool) -> None:
    """Let groups of columns go through all tiles, or blocks of tiles through all columns."""
    monkeypatch.setattr(winograd, "worth_columns", lambda weights, values: by_columns)
    monkeypatch.setattr(winograd_gradient, "worth_sums_of_columns", lambda sums, values: by_columns)


@needs_two_threads
@pytest.mark.parametrize("by_columns", [False, True], ids=["by blocks", "by columns"])
@pytest.mark.parametrize(
    ("scheme", "n", "output", "c", "k"),
    [
        (F43, 5, (9, 7), 20, 150),
        (F43, 60, (9, 7), 20, 24),
        (F43, 1, (3, 4), 9, 8),
        (F23, 3, (2, 5), 17, 40),
        (F25, 3, (5, 6), 8, 33),
        (STRIDED, 5, (9, 7), 20, 150),
        (STRIDED, 1, (2, 1), 9, 8),
    ],
)
def test_two_threads_are_within_the_bound_and_give_the_bits_of_one(
    scheme: Scheme,
    n: int,
    output: tuple[int, int],
    c: int,
    k: int,
    by_columns: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tiles that cannot be shared evenly, many blocks, and a single tile, which leaves a thread without any."""
    choose_columns(monkeypatch, by_columns)
    rig = Rig(scheme, n, output, c, k, (1, 1), "float32")
    alone = rig.forward(rig.bias), rig.backward_input()
    set_threads(2)
    check(rig)
    for one, other in zip((rig.forward(rig.bias), rig.backward_input()), alone, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("scheme", EVERY, ids=lambda scheme: type(scheme).__name__)
def test_columns_by_groups_give_the_bits_of_tiles_by_blocks(scheme: Scheme, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the gradient of the weight, which adds up block by block: there of one block."""
    rig, small = (Rig(scheme, n, (5, 6), 20, 150, (1, 1), "float32") for n in (7, 5))

    def results() -> tuple[np.ndarray, ...]:
        return rig.forward(rig.bias), rig.backward_input(), small.backward_weight()

    by_blocks = results()
    choose_columns(monkeypatch, True)
    for one, other in zip(results(), by_blocks, strict=True):
        np.testing.assert_array_equal(one, other)
    check(rig)


@pytest.mark.parametrize("scheme", EVERY, ids=lambda scheme: type(scheme).__name__)
def test_a_sample_has_the_same_bits_in_every_batch(scheme: Scheme) -> None:
    whole, one = (Rig(scheme, n, (9, 7), 20, 24, (1, 1), "float32") for n in (60, 1))
    one.x, one.dy, one.weight = whole.x[37:38], whole.dy[37:38], whole.weight
    np.testing.assert_array_equal(one.forward(one.bias), whole.forward(one.bias)[37:38])
    np.testing.assert_array_equal(one.backward_input(), whole.backward_input()[37:38])


def test_a_number_that_is_none_stays_so() -> None:
    rig = Rig(F43, 2, (6, 6), 8, 8, (1, 1), "float32")
    rig.x[1, 2, 3, 4] = np.nan
    y = rig.forward(rig.bias)
    assert np.isnan(y[1, 2, 3]).all()
    assert np.isfinite(y[0]).all()


def test_the_scheme_of_fewest_products_is_taken() -> None:
    def best(kernel: int, stride: int, padding: int, size: int) -> Scheme | None:
        return winograd.best_scheme((kernel, kernel), (stride, stride), (padding, padding), (size, size))

    assert best(3, 1, 1, 32) == F43
    assert best(3, 1, 1, 2) == F23
    assert best(5, 1, 2, 27) == F25
    assert best(3, 2, 1, 16) == STRIDED
    assert best(3, 2, 0, 16) is best(7, 2, 3, 112) is best(3, 3, 1, 9) is None
    assert winograd.best_scheme((3, 5), (1, 1), (1, 1), (8, 8)) is None


@given(
    outputs=st.integers(1, 4),
    kernel=st.integers(1, 3),
    numbers=st.lists(st.fractions(max_denominator=9), min_size=9, max_size=9),
)
def test_an_interpolation_is_a_convolution_without_rounding(outputs: int, kernel: int, numbers: list[Fraction]) -> None:
    matrices = interpolation(outputs, kernel)
    signal, weight = numbers[: outputs + kernel - 1], numbers[-kernel:]
    inputs, output, filters = ([list(row) for row in matrix] for matrix in matrices)

    def apply(matrix: list[list[Fraction]], vector: list[Fraction]) -> list[Fraction]:
        return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]

    products = [a * b for a, b in zip(apply(inputs, signal), apply(filters, weight), strict=True)]
    expected = [sum(signal[i + j] * weight[j] for j in range(kernel)) for i in range(outputs)]
    assert apply(output, products) == expected
