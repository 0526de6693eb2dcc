"""How parameters start: their distribution, and that it depends on seed and name alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.kernels.random import derive_key
from hpdl_mpi.nn import Conv2d, Flatten, Layer, Layout, Linear, Parallel, ReLU, Sequential, init
from tests import reference as ref

SIZE = 100_003
"""Odd, so that the last draw is cut short, and more than one block of the kernel."""

KEY = derive_key(5, "a parameter")


def draw(initializer: init.Initializer, size: int = SIZE, fan_in: int = 30, fan_out: int = 20) -> np.ndarray:
    out = np.full(size, np.nan)
    initializer(out, KEY, fan_in, fan_out)
    return out


UNIFORM = {
    "Uniform": (init.Uniform(-2.0, 1.0), -2.0, 1.0),
    "FanInUniform": (init.FanInUniform(), -math.sqrt(1 / 30), math.sqrt(1 / 30)),
    "HeUniform": (init.HeUniform(), -math.sqrt(6 / 30), math.sqrt(6 / 30)),
    "GlorotUniform": (init.GlorotUniform(), -math.sqrt(6 / 50), math.sqrt(6 / 50)),
}
NORMAL = {
    "HeNormal": (init.HeNormal(), math.sqrt(2 / 30)),
    "GlorotNormal": (init.GlorotNormal(), math.sqrt(2 / 50)),
}


def check_uniform(values: np.ndarray, low: float, high: float) -> None:
    """Kolmogorov and Smirnov: the sup distance of n draws exceeds 2.2 / sqrt(n) once in 10^4."""
    assert low <= values.min()
    assert values.max() < high
    steps = np.arange(values.size + 1) / values.size
    ideal = (np.sort(values) - low) / (high - low)
    assert max((ideal - steps[:-1]).max(), (steps[1:] - ideal).max()) < 2.2 / math.sqrt(values.size)


@pytest.mark.parametrize(("initializer", "low", "high"), UNIFORM.values(), ids=UNIFORM)
def test_uniform_starts_fill_their_interval_evenly(initializer: init.Initializer, low: float, high: float) -> None:
    values = draw(initializer)
    check_uniform(values, low, high)
    np.testing.assert_allclose(values[:11], ref.uniform(11, int(KEY), low, high), rtol=0, atol=1e-15 * (high - low))


@pytest.mark.parametrize(("initializer", "deviation"), NORMAL.values(), ids=NORMAL)
def test_normal_starts_are_normal(initializer: init.Initializer, deviation: float) -> None:
    values = draw(initializer)
    check_uniform(np.array([0.5 * math.erfc(-v / deviation / math.sqrt(2)) for v in values]), 0.0, 1.0)
    np.testing.assert_allclose(values[:11], ref.normal(11, int(KEY), deviation), rtol=0, atol=1e-14 * deviation)


def test_neighbouring_draws_are_independent() -> None:
    """The correlation of n independent pairs has a standard deviation of 1 / sqrt(n)."""
    for initializer in (init.Uniform(-1.0, 1.0), init.HeNormal()):
        values = draw(initializer)
        for lag in (1, 2, 3, 4):
            assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < 4 / math.sqrt(SIZE)


def test_constant_is_constant() -> None:
    assert (draw(init.Constant(0.5), 10) == 0.5).all()
    assert (draw(init.Constant(), 10) == 0.0).all()


@pytest.mark.parametrize("number", ["a", None, True, math.inf])
def test_what_is_no_finite_number_is_refused(number: object) -> None:
    with pytest.raises(InputError) as caught:
        init.Constant(number)
    assert str(caught.value) == f"nn.init.Constant: value: out of range. Found {number!r}; expected a finite number."
    with pytest.raises(InputError, match=r"^nn\.init\.Uniform: high: out of range"):
        init.Uniform(0.0, number)


@pytest.mark.parametrize("initializer", [init.HeUniform(), init.HeNormal()], ids=["uniform", "normal"])
def test_a_draw_depends_on_its_place_alone(initializer: init.Initializer) -> None:
    long = draw(initializer, 4099)
    for size in (1, 2, 3, 5, 4097):
        np.testing.assert_array_equal(draw(initializer, size), long[:size])


def start(model: Layer, shape: tuple[int, ...], seed: int = 0, dtype: type = np.float64) -> dict[str, np.ndarray]:
    model.build(shape)
    layout = Layout(model)
    flat = layout.allocate(dtype)
    layout.initialize(flat, seed)
    return layout.views(flat)


def test_start_depends_on_seed_and_name_not_on_the_rest_of_the_model() -> None:
    whole = start(Sequential(Conv2d(4, 3), ReLU(), Flatten(), Linear(5), Linear(5)), (5, 5, 2))
    for name, stage in (("3", Sequential(**{"3": Linear(5)})), ("4", Sequential(**{"4": Linear(5)}))):
        features = whole[f"{name}.weight"].shape[1]
        np.testing.assert_array_equal(start(stage, (features,))[f"{name}.weight"], whole[f"{name}.weight"])
    other = start(Sequential(Conv2d(4, 3)), (5, 5, 2), seed=1)
    assert (other["0.weight"] != whole["0.weight"]).all()


def test_layers_of_one_shape_start_apart() -> None:
    values = start(Parallel(Linear(5), Linear(5)), (5,))
    assert (values["0.weight"] != values["1.weight"]).all()


def test_precision_changes_nothing_but_the_rounding() -> None:
    for initializer in (init.HeUniform(), init.HeNormal()):
        single, double = (
            start(Linear(50, init=initializer), (40,), dtype=d)["weight"] for d in (np.float32, np.float64)
        )
        np.testing.assert_array_equal(single, double.astype(np.float32))


def test_fans_are_those_of_the_connections() -> None:
    seen: dict[str, tuple[int, int]] = {}

    def record(name: str) -> init.Initializer:
        return lambda out, key, fan_in, fan_out: seen.__setitem__(name, (fan_in, fan_out))

    start(Linear(5, init=record("linear"), bias_init=record("linear bias")), (7,))
    start(Conv2d(6, (3, 2), init=record("conv"), bias_init=record("conv bias")), (9, 9, 4))
    assert seen == {
        "linear": (7, 5),
        "linear bias": (7, 5),
        "conv": (3 * 2 * 4, 3 * 2 * 6),
        "conv bias": (3 * 2 * 4, 3 * 2 * 6),
    }
