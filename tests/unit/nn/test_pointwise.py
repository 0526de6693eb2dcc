"""Convolutions with kernels of one pixel, whose stride leaves pixels out: the definition, within rounding."""

from __future__ import annotations

import numpy as np
import pytest

from hpdl_mpi.kernels.threads import set_threads
from hpdl_mpi.nn import Context, MicroBatch, Pool
from hpdl_mpi.nn.conv_methods import ConvShape, Pointwise
from hpdl_mpi.nn.conv_rules import choose
from tests import reference as ref
from tests.threads import needs_two_threads

KERNELS = 5

THREADS = [1, pytest.param(2, marks=needs_two_threads)]


def bound(terms: int, dtype: str, absolute: np.ndarray) -> np.ndarray:
    """Return how far sums of so many products may be from each other (Higham, 2002, lemma 3.1, for either)."""
    roundings = 2 * terms * np.finfo(dtype).eps / 2
    return roundings / (1 - roundings) * absolute


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("channels", [1, 3, 17])
@pytest.mark.parametrize(
    ("n", "size", "stride"),
    [(3, (7, 9), (2, 2)), (2, (8, 5), (3, 1)), (2, (5, 8), (1, 2)), (4, (1, 3), (2, 4)), (1, (6, 6), (2, 2))],
)
def test_pixels_that_are_met_give_the_convolution_of_the_definition(
    n: int, size: tuple[int, int], stride: tuple[int, int], channels: int, dtype: str, threads: int
) -> None:
    set_threads(threads)
    rng = np.random.default_rng(0)
    output = tuple(-(-length // step) for length, step in zip(size, stride, strict=True))
    x, weight, bias, dy = (
        rng.normal(size=shape).astype(dtype)
        for shape in ((n, *size, channels), (KERNELS, 1, 1, channels), (KERNELS,), (n, *output, KERNELS))
    )
    method = choose(ConvShape(weight.shape, output, stride))
    assert type(method) is Pointwise
    pool = Pool(poison=True)
    ctx = Context(MicroBatch(pool))
    y, dx, dweight = np.full_like(dy, np.nan), np.full_like(x, np.nan), np.ones_like(weight)
    method.forward(x, weight, bias, y, ctx)
    method.backward_input(dy, weight, dx, ctx)
    method.backward_weight(x, dy, dweight, ctx)
    assert pool.bytes_live == 0

    def hold(found: np.ndarray, expected: np.ndarray, absolute: np.ndarray, terms: int) -> None:
        assert (np.abs(found - expected) <= bound(terms, dtype, absolute)).all()

    wide = [array.astype(float) for array in (x, weight, bias, dy)]
    plain, absolute = (
        ref.conv2d(x, weight, bias, stride=stride) for x, weight, bias, _ in (wide, [np.abs(array) for array in wide])
    )
    hold(y, plain, absolute, channels + 1)

    # From the definition: a pixel that the stride does not meet is in no output.
    x, weight, _, dy = wide
    met = np.s_[:, :: stride[0], :: stride[1]]
    plain, absolute = np.zeros_like(x), np.zeros_like(x)
    plain[met] = dy @ weight[:, 0, 0]
    absolute[met] = np.abs(dy) @ np.abs(weight[:, 0, 0])
    hold(dx, plain, absolute, KERNELS)
    plain = 1 + np.einsum("nijk,nijc->kc", dy, x[met])[:, None, None]
    absolute = 1 + np.einsum("nijk,nijc->kc", np.abs(dy), np.abs(x[met]))[:, None, None]
    hold(dweight, plain, absolute, dy[..., 0].size + 1)
