"""Passes over arrays, where the result takes the place of an operand and where it lies apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from hpdl_mpi.kernels.activation import clip, clip_backward, gelu, gelu_tanh
from hpdl_mpi.kernels.elementwise import add, add_clipped, multiply
from hpdl_mpi.kernels.threads import set_threads

PASSES: dict[str, tuple[Callable, Callable]] = {
    "add": (add, np.add),
    "multiply": (multiply, np.multiply),
    "add_clipped": (lambda a, b, out: add_clipped(a, b, -1.0, 1.0, out), lambda a, b: np.clip(a + b, -1, 1)),
    "clip": (lambda a, b, out: clip(a, -0.5, 0.5, out), lambda a, b: np.clip(a, -0.5, 0.5)),
    "clip, no limit": (lambda a, b, out: clip(a, 0.0, np.inf, out), lambda a, b: np.maximum(a, 0)),
    "clip_backward": (
        lambda a, b, out: clip_backward(a, b, 0.0, 1.0, out),
        lambda a, b: np.where((b <= 0) | (b >= 1), 0, a),
    ),
    "clip_backward, no limit": (
        lambda a, b, out: clip_backward(a, b, 0.0, np.inf, out),
        lambda a, b: np.where(b <= 0, 0, a),
    ),
}


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let kernels use so many threads."""
    set_threads(request.param)
    yield
    set_threads(1)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [0, 1, 7, 64, 1001])
@pytest.mark.parametrize("name", PASSES)
def test_result_in_the_place_of_the_first_operand_is_that_apart(name: str, size: int, dtype: type) -> None:
    run, expected = PASSES[name]
    rng = np.random.default_rng(size)
    a, b, out = (rng.normal(size=size).astype(dtype) for _ in range(3))
    a[:4], b[-4:] = [np.inf, -np.inf, np.nan, 0.0][:size], [np.inf, -np.inf, np.nan, 0.0][:size]
    with np.errstate(invalid="ignore"):  # 0 times infinity
        known = expected(a, b)
    run(a, b, out)
    run(a, b, a)
    np.testing.assert_array_equal(out, known)
    np.testing.assert_array_equal(a, known)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("activation", [gelu, gelu_tanh])
def test_slope_of_gelu_in_the_place_of_its_argument_is_that_apart(activation: Callable, dtype: type) -> None:
    x: np.ndarray = np.random.default_rng(0).normal(size=1001).astype(dtype)
    alone, apart, y, slope = (np.full_like(x, np.nan) for _ in range(4))
    activation(x, alone, x[:0])
    activation(x, apart, slope)
    activation(x, y, x)
    np.testing.assert_array_equal(apart, alone)
    np.testing.assert_array_equal(y, alone)
    np.testing.assert_array_equal(x, slope)
