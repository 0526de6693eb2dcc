"""Elementary functions in single precision have the errors that their docstrings state."""

from __future__ import annotations

import math

import numpy as np

from hpdl_mpi.kernels import elementary
from hpdl_mpi.kernels.jit import kernel

ROUNDING = 2.0**-24


@kernel
def exp(x, y):
    """y = exp(x)."""
    for i in range(x.size):
        y[i] = elementary.exp(x[i])


@kernel
def tanh(x, y):
    """y = tanh(x)."""
    for i in range(x.size):
        y[i] = elementary.tanh(x[i])


@kernel
def normal(x, distribution, density):
    """Write both results of `normal`."""
    for i in range(x.size):
        distribution[i], density[i] = elementary.normal(x[i])


def dense(low: float, high: float) -> np.ndarray:
    """Return 100,000 numbers of an interval and its ends, as float32."""
    inside = np.random.default_rng(0).uniform(low, high, 100_000)
    return np.concatenate([inside, [low, high]]).astype(np.float32)


def relative_errors(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return errors in units of `ROUNDING`; they come from the code in double precision, whose own are 10^-9 of it."""
    return np.abs(found - expected) / expected / ROUNDING


def test_powers_are_good_to_two_roundings() -> None:
    x = dense(-87.0, 0.0)
    y, exact = np.empty_like(x), np.empty(x.size)
    exp(x, y)
    exp(x.astype(float), exact)
    np.testing.assert_array_equal(exact, [math.exp(value) for value in x])
    assert relative_errors(y, exact).max() < 2


def test_power_of_what_is_below_any_is_zero_and_of_nan_nan() -> None:
    x = np.array([-87.1, -1e30, -np.inf, np.nan], np.float32)
    y = np.empty_like(x)
    exp(x, y)
    np.testing.assert_array_equal(y, np.array([0.0, 0.0, 0.0, np.nan], np.float32))


def test_hyperbolic_tangent_is_good_to_four_roundings() -> None:
    x = np.concatenate([dense(-10.0, 10.0), dense(-1.0, 1.0), dense(-1e-3, 1e-3), dense(-1e-30, 1e-30)])
    y, exact = np.empty_like(x), np.empty(x.size)
    tanh(x, y)
    tanh(x.astype(float), exact)
    np.testing.assert_array_equal(exact, [math.tanh(value) for value in x])
    assert (np.abs(y - exact) <= 4 * ROUNDING * np.abs(exact)).all()


def test_hyperbolic_tangent_ends_at_one_and_keeps_zeros_sign_and_nan() -> None:
    x = np.array([-np.inf, -100.0, -0.0, 0.0, 100.0, np.inf, np.nan], np.float32)
    y = np.empty_like(x)
    tanh(x, y)
    np.testing.assert_array_equal(y, np.array([-1.0, -1.0, -0.0, 0.0, 1.0, 1.0, np.nan], np.float32))
    assert np.signbit(y[2])
    assert not np.signbit(y[3])


def test_normal_distribution_and_density_are_good_to_the_roundings_stated() -> None:
    x = dense(-13.1, 13.1)
    distribution, density = np.empty_like(x), np.empty_like(x)
    normal(x, distribution, density)
    exact = np.array([0.5 * math.erfc(-float(value) / math.sqrt(2)) for value in x])
    bound = 8 + x.astype(float) ** 2
    assert (relative_errors(distribution, exact) < bound).all()
    assert (relative_errors(density, np.exp(-0.5 * x.astype(float) ** 2)) < bound).all()


def test_normal_distribution_ends_at_zero_and_one() -> None:
    x = np.array([-np.inf, -20.0, 20.0, np.inf, np.nan], np.float32)
    distribution, density = np.empty_like(x), np.empty_like(x)
    normal(x, distribution, density)
    np.testing.assert_array_equal(distribution, np.array([0.0, 0.0, 1.0, 1.0, np.nan], np.float32))
    np.testing.assert_array_equal(density, np.array([0.0, 0.0, 0.0, 0.0, np.nan], np.float32))
