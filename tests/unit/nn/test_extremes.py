"""Layers where numbers are extreme, windows many, or images large."""

from __future__ import annotations

import numpy as np
import pytest

from hpdl_mpi.nn import GELU, Conv2d, Layer, LeakyReLU, MaxPool2d, ReLU, ReLU6, Sigmoid, SiLU, Softmax, Tanh
from tests import reference as ref
from tests.unit.nn.rig import Case, Rig


def apply(layer: Layer, x: np.ndarray) -> np.ndarray:
    return Rig(Case(lambda: layer, x.shape[1:], lambda x, p: x)).output(x, np.arange(len(x)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("layer", "expected", "slopes"),
    [
        (ReLU(), [0.0, 0.0, 0.0, 1e30, np.inf], [0.0, 0.0, 0.0, 1.0, 1.0]),
        (ReLU6(), [0.0, 0.0, 0.0, 6.0, 6.0], [0.0, 0.0, 0.0, 0.0, 0.0]),
        (LeakyReLU(0.5), [-np.inf, -5e29, 0.0, 1e30, np.inf], [0.5, 0.5, 0.5, 1.0, 1.0]),
        (Sigmoid(), [0.0, 0.0, 0.5, 1.0, 1.0], [0.0, 0.0, 0.25, 0.0, 0.0]),
        (Tanh(), [-1.0, -1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0, 0.0]),
        (SiLU(), [0.0, 0.0, 0.0, 1e30, np.inf], [0.0, 0.0, 0.5, 1.0, 1.0]),
        (GELU(), [0.0, 0.0, 0.0, 1e30, np.inf], [0.0, 0.0, 0.5, 1.0, 1.0]),
        (GELU("tanh"), [0.0, 0.0, 0.0, 1e30, np.inf], [0.0, 0.0, 0.5, 1.0, 1.0]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_activations_have_their_limits_at_infinity(
    layer: Layer, expected: list[float], slopes: list[float], dtype: type
) -> None:
    x = np.array([[-np.inf, -1e30, 0.0, 1e30, np.inf]], dtype)
    rig = Rig(Case(lambda: layer, x.shape[1:], lambda x, p: x), dtype)
    np.testing.assert_array_equal(rig.output(x, np.arange(1)), np.array([expected], dtype))
    # float32 has 0.5 and 1 - 0.5 exactly too, but for what a polynomial makes of it: 8 roundings at most.
    np.testing.assert_allclose(rig.step(x, np.ones_like(x), np.arange(1)), [slopes], rtol=0, atol=8 * 2.0**-24)


def test_softmax_of_large_numbers_is_finite_and_may_hold_zeros() -> None:
    x = np.array([[1000.0, 1000.0, -1000.0, -np.inf]])
    np.testing.assert_array_equal(apply(Softmax(), x), [[0.5, 0.5, 0.0, 0.0]])


@pytest.mark.parametrize("place", range(4))
def test_nan_wins_a_window_wherever_it_stands(place: int) -> None:
    x = np.arange(4.0)
    x[place] = np.nan
    assert np.isnan(apply(MaxPool2d(2), x.reshape(1, 2, 2, 1))).all()


def pool_gradient(layer: MaxPool2d, x: np.ndarray, dy: np.ndarray) -> np.ndarray:
    return Rig(Case(lambda: layer, x.shape[1:], lambda x, p: x)).step(x, dy, np.arange(len(x)))


def test_first_of_equal_maxima_gets_the_gradient() -> None:
    dx = pool_gradient(MaxPool2d(2), np.array([1.0, 5.0, 5.0, 5.0]).reshape(1, 2, 2, 1), np.ones((1, 1, 1, 1)))
    np.testing.assert_array_equal(dx.reshape(-1), [0.0, 1.0, 0.0, 0.0])


def test_window_of_minus_infinity_sends_its_gradient_into_the_image() -> None:
    x = np.full((1, 1, 2, 1), -np.inf)
    dx = pool_gradient(MaxPool2d((1, 2), stride=2, padding=(0, 1)), x, np.array([3.0, 4.0]).reshape(1, 1, 2, 1))
    np.testing.assert_array_equal(dx.reshape(-1), [3.0, 4.0])


def test_largest_window_finds_its_last_position() -> None:
    x = np.arange(256.0).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(pool_gradient(MaxPool2d(16), x, np.ones((1, 1, 1, 1))), x == 255.0)


def test_convolution_of_many_pixels() -> None:
    """More pixels than a block of the unfolded matrix holds: the blocks join without a seam.

    Convolution without a bias is linear in x and in the weight W, so <dy, y> = <dx, x> = <dW, W>.
    """
    case = Case(lambda: Conv2d(2, 3, padding=1, bias=False), (50, 41, 5), lambda x, p: x)
    rig = Rig(case)
    y = rig.output(rig.x)
    np.testing.assert_allclose(y, ref.conv2d(rig.x, *rig.named_params.values(), padding=(1, 1)), rtol=0, atol=1e-13)
    dx = rig.step(rig.x, rig.dy)
    # Sums of 12,300 to 30,750 products of size 1 to 10, rounded to 1.1e-16 each.
    product = np.vdot(rig.dy, y)
    assert np.vdot(dx, rig.x) == pytest.approx(product, abs=1e-9)
    assert np.vdot(rig.grads, rig.params) == pytest.approx(product, abs=1e-9)
