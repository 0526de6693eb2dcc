"""Winograd's method: the convolution of the definition, within a bound that is derived here."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpdl_mpi.base.memory import aligned
from hpdl_mpi.kernels import winograd
from hpdl_mpi.kernels.winograd import FILTERS, INPUT, OUTPUTS, tile_size
from tests import reference as ref

B = np.abs(np.array(INPUT))
A, G = ({r: np.abs(np.array(matrix)) for r, matrix in matrices.items()} for matrices in (OUTPUTS, FILTERS))

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


def tiles_of(image: np.ndarray, padding: tuple[int, int], output: tuple[int, int], step: int, size: int) -> np.ndarray:
    """Return the absolute values of an image's tiles, (n, tiles down, tiles across, size, size, c), float64.

    They lie `step` apart, and there are as many as outputs of that size.
    """
    top, left = padding
    down, across = (-(-length // step) for length in output)
    padded = np.zeros((len(image), step * down + size - step, step * across + size - step, image.shape[3]))
    place = padded[:, top : top + image.shape[1], left : left + image.shape[2]]
    place[...] = np.abs(image)[:, : place.shape[1], : place.shape[2]]
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))[:, ::step, ::step]
    return windows[:, :down, :across].transpose(0, 1, 2, 4, 5, 3)


def absolute_convolution(x: np.ndarray, weight: np.ndarray, padding: tuple[int, int], output: tuple[int, int]):
    """Return the method's result with absolute values in all places, and no difference anywhere."""
    r = weight.shape[1]
    values = np.einsum("ai,bj,nyxijc->nyxabc", B, B, tiles_of(x, padding, output, tile_size(r), 6))
    filters = np.einsum("ai,bj,kijc->kabc", G[r], G[r], np.abs(weight.astype(float)))
    tiles = np.einsum("pa,qb,nyxabc,kabc->nypxqk", A[r], A[r], values, filters, optimize=True)
    n, down, step, across, _, k = tiles.shape
    return tiles.reshape(n, step * down, step * across, k)[:, : output[0], : output[1]]


def absolute_gradient(x: np.ndarray, dy: np.ndarray, r: int, padding: tuple[int, int]):
    """Return the same of the gradient for the weight."""
    output, step = (dy.shape[1], dy.shape[2]), tile_size(r)
    values = np.einsum("ai,bj,nyxijc->nyxabc", B, B, tiles_of(x, padding, output, step, 6))
    gradients = np.einsum("pa,qb,nyxpqk->nyxabk", A[r], A[r], tiles_of(dy, (0, 0), output, step, step))
    points = np.einsum("nyxabk,nyxabc->kabc", gradients, values, optimize=True)
    return np.einsum("ai,bj,kabc->kijc", G[r], G[r], points)


class Rig:
    """Random arrays of a convolution, and scratch full of NaN."""

    def __init__(
        self, n: int, output: tuple[int, int], c: int, k: int, padding: tuple[int, int], dtype: str, r: int = 3
    ) -> None:
        rng = np.random.default_rng(0)
        self.dtype, self.padding = np.dtype(dtype), padding
        height, width = (size + r - 1 - 2 * pad for size, pad in zip(output, padding, strict=True))
        self.x, self.weight, self.bias, self.dy = (
            rng.normal(size=shape).astype(dtype)
            for shape in ((n, height, width, c), (k, r, r, c), (k,), (n, *output, k))
        )

    def scratch(self, *shape: int) -> np.ndarray:
        array = aligned(int(np.prod(shape)), self.dtype)
        array.fill(np.nan)
        return array.reshape(shape)

    def forward(self, bias: np.ndarray) -> np.ndarray:
        k, _, _, c = shape = self.weight.shape
        y = np.full_like(self.dy, np.nan)
        panels = self.scratch(winograd.panels_size(c, k, self.dtype))
        transposed = self.scratch(*winograd.transposed_shape(shape, self.dtype))
        scratch = self.scratch(*winograd.scratch_shape(shape, self.dtype))
        winograd.forward(self.x, self.weight, bias, self.padding, panels, transposed, scratch, y)
        return y

    def backward_input(self) -> np.ndarray:
        k, _, _, c = shape = self.weight.shape
        dx = np.full_like(self.x, np.nan)
        panels = self.scratch(winograd.panels_size(k, c, self.dtype))
        scratch = self.scratch(*winograd.scratch_shape(shape, self.dtype))
        winograd.backward_input(self.dy, self.weight, self.padding, panels, scratch, dx)
        return dx

    def backward_weight(self) -> np.ndarray:
        shape = self.weight.shape
        scratch = self.scratch(*winograd.scratch_shape(shape, self.dtype))
        points = self.scratch(len(scratch), winograd.points_size(shape))
        dweights = np.zeros((len(scratch), *shape), self.dtype)
        winograd.backward_weight(self.x, self.dy, self.padding, points, scratch, dweights)
        return dweights.sum(0)


def check(rig: Rig) -> None:
    """Hold all three against the definition in float64."""
    x, weight, dy = (array.astype(float) for array in (rig.x, rig.weight, rig.dy))
    k, r, _, c = weight.shape
    size = dy.shape[1], dy.shape[2]

    expected = ref.conv2d(x, weight, 0.0, padding=rig.padding)
    absolute = absolute_convolution(x, weight, rig.padding, size)
    assert (np.abs(rig.forward(rig.bias[:0]) - expected) <= bound(c, rig.dtype, absolute)).all()
    with_bias = expected + rig.bias.astype(float)
    assert (np.abs(rig.forward(rig.bias) - with_bias) <= bound(c, rig.dtype, absolute + np.abs(rig.bias))).all()

    turned = np.ascontiguousarray(weight[:, ::-1, ::-1].transpose(3, 1, 2, 0))
    inverse = r - 1 - rig.padding[0], r - 1 - rig.padding[1]
    expected = ref.conv2d(dy, turned, 0.0, padding=inverse)
    absolute = absolute_convolution(dy, turned, inverse, x.shape[1:3])
    assert (np.abs(rig.backward_input() - expected) <= bound(k, rig.dtype, absolute)).all()

    padded = np.pad(x, ((0, 0), *((pad, pad) for pad in rig.padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, size, axis=(1, 2))  # (n, r, r, c, ho, wo)
    expected = np.einsum("nijcyx,nyxk->kijc", windows, dy)
    terms = len(x) * math.prod(-(-length // tile_size(r)) for length in size)
    absolute = absolute_gradient(x, dy, r, rig.padding)
    assert (np.abs(rig.backward_weight() - expected) <= bound(terms, rig.dtype, absolute)).all()


@given(
    n=st.integers(1, 3),
    height=st.integers(1, 11),
    width=st.integers(1, 11),
    c=st.integers(1, 40),
    k=st.integers(1, 40),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    r=st.sampled_from([3, 5]),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_every_shape_is_within_the_bound(
    n: int, height: int, width: int, c: int, k: int, padding: tuple[int, int], r: int, dtype: str
) -> None:
    output = max(height, 2 * padding[0] + 2 - r), max(width, 2 * padding[1] + 2 - r)
    check(Rig(n, output, c, k, padding, dtype, r))


@pytest.mark.parametrize(
    ("n", "size", "c", "k"),
    [(5, 32, 16, 16), (40, 8, 64, 100), (3, 4, 300, 20), (3, 4, 20, 300), (13, 4, 512, 512)],
)
def test_several_blocks_and_panels_are_within_the_bound(n: int, size: int, c: int, k: int) -> None:
    check(Rig(n, (size, size), c, k, (1, 1), "float32"))


def test_a_sample_has_the_same_bits_in_every_batch() -> None:
    whole, one = Rig(60, (9, 7), 20, 24, (1, 1), "float32"), Rig(1, (9, 7), 20, 24, (1, 1), "float32")
    one.x, one.dy, one.weight = whole.x[37:38], whole.dy[37:38], whole.weight
    np.testing.assert_array_equal(one.forward(one.bias), whole.forward(one.bias)[37:38])
    np.testing.assert_array_equal(one.backward_input(), whole.backward_input()[37:38])


def test_a_number_that_is_none_stays_so() -> None:
    rig = Rig(2, (6, 6), 8, 8, (1, 1), "float32")
    rig.x[1, 2, 3, 4] = np.nan
    y = rig.forward(rig.bias)
    assert np.isnan(y[1, 2, 3]).all()
    assert np.isfinite(y[0]).all()
