"""Normalisation: statistics of batches, and sums that stay accurate."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from hpdl_mpi.kernels import normalization as kernel
from hpdl_mpi.kernels import sample_norm
from hpdl_mpi.nn import BatchNorm2d, GroupNorm, Layer, LayerNorm, Recompute, ReLU, ReLU6, Sequential
from tests import reference as ref
from tests.unit.nn.rig import Case, Rig

SHAPE = (4, 3, 5)


def make(activation: Literal["relu", "relu6"] | None = None) -> Rig:
    return Rig(Case(lambda: BatchNorm2d(eps=1e-3, momentum=0.25, activation=activation), SHAPE, lambda x, p: x))


def test_running_values_follow_those_of_micro_batches() -> None:
    rig = make()
    mean, var = np.zeros(5), np.ones(5)
    for scale in (1.0, 3.0):
        x = scale * rig.x + scale
        rig.output(x)
        rows = x.reshape(-1, 5)
        mean = 0.75 * mean + 0.25 * rows.mean(0)
        var = 0.75 * var + 0.25 * rows.var(0, ddof=1)
    np.testing.assert_allclose(rig.layer.statistics["running_mean"], mean, rtol=1e-12)
    np.testing.assert_allclose(rig.layer.statistics["running_var"], var, rtol=1e-12)


def test_evaluation_takes_the_running_values_and_leaves_them() -> None:
    rig = make("relu")
    rig.output(rig.x)
    before = rig.statistics.copy()
    y = rig.output(2 * rig.x, training=False)
    np.testing.assert_array_equal(rig.statistics, before)
    mean, var = (rig.layer.statistics[name] for name in ("running_mean", "running_var"))
    expected = (2 * rig.x - mean) / np.sqrt(var + 1e-3) * rig.named_params["weight"] + rig.named_params["bias"]
    np.testing.assert_allclose(y, ref.relu(expected), rtol=0, atol=1e-13)


def test_recomputation_counts_nothing_twice() -> None:
    plain, again = (
        Rig(Case(lambda wrap=wrap: Sequential(wrap(Sequential(BatchNorm2d()))), SHAPE, lambda x, p: x))
        for wrap in (lambda layer: layer, Recompute)
    )
    for rig in (plain, again):
        rig.step(rig.x, rig.dy)
    assert plain.statistics.any()
    np.testing.assert_array_equal(again.statistics, plain.statistics)
    np.testing.assert_array_equal(again.grads, plain.grads)


def test_a_micro_batch_without_samples_changes_nothing() -> None:
    rig = make()
    before = rig.statistics.copy()
    rig.step(rig.x[:0], rig.dy[:0], np.zeros(0, np.int64))
    np.testing.assert_array_equal(rig.statistics, before)
    assert not rig.grads.any()


@pytest.mark.parametrize("rows", [1, 255, 257, 5000])
def test_variances_of_large_numbers_are_accurate(rows: int) -> None:
    """The mean is 10^4 deviations: squares, summed up as they are, would leave nothing of the variance in float32.

    Differences to a mean are exact, and a sum of 256 squares to 256 2^-24 = 1.5e-5.
    """
    x = (1e4 + np.random.default_rng(0).normal(size=(rows, 3))).astype(np.float32)
    out = np.empty((2, 3))
    partial, factors, one = (np.ones(shape, np.float32) for shape in (kernel.partial_shape(rows, 3), (4, 3), 3))
    kernel.normalize_by_moments(
        x, one, one, 0.0, 1e-5, one, one, x[:0], (-np.inf, np.inf), partial, out, factors, np.empty_like(x)
    )
    np.testing.assert_allclose(out[0], x.astype(float).mean(0), rtol=1e-9)
    np.testing.assert_allclose(out[1], x.astype(float).var(0), rtol=3e-5)


@pytest.mark.parametrize(("activation", "layer"), [("relu", ReLU), ("relu6", ReLU6)])
def test_activation_is_that_of_a_layer_behind(activation: Literal["relu", "relu6"], layer: type[Layer]) -> None:
    together, apart = (
        Rig(Case(lambda layers=layers: Sequential(*layers()), SHAPE, lambda x, p: x))
        for layers in (lambda: [BatchNorm2d(activation=activation)], lambda: [BatchNorm2d(), layer()])
    )
    for rig in (together, apart):
        rig.params *= 6  # much goes beyond 6
    y = apart.output(apart.x)
    assert (6.0 in y) == (activation == "relu6")
    np.testing.assert_array_equal(together.output(together.x), y)
    np.testing.assert_array_equal(together.step(together.x, together.dy), apart.step(apart.x, apart.dy))
    np.testing.assert_array_equal(together.grads, apart.grads)


@pytest.mark.parametrize(("activation", "layer"), [("relu", ReLU), ("relu6", ReLU6)])
def test_activation_is_that_of_a_layer_behind_where_numbers_overflow(
    activation: Literal["relu", "relu6"], layer: type[Layer]
) -> None:
    x = np.array([[1, 2], [3, 4], [-2, np.nan]], np.float32)
    dy = np.full_like(x, 1e-30)
    results = []
    for layers in ([BatchNorm2d(activation=activation)], [BatchNorm2d(), layer()]):
        rig = Rig(Case(lambda layers=layers: Sequential(*layers), (2,), lambda x, p: x), np.float32)
        rig.params[...] = 3e38
        results.append([rig.output(x, np.arange(3)), rig.step(x, dy, np.arange(3)), rig.grads])
    assert np.isinf(results[0][0][:, 0]).any() == (activation == "relu")
    for together, apart in zip(*results, strict=True):
        np.testing.assert_array_equal(together, apart)


OF_SAMPLES = {
    "LayerNorm": Case(LayerNorm, (30, 20, 6), lambda x, p: ref.layer_norm(x, p["weight"], p["bias"], 1e-5)),
    "GroupNorm": Case(
        lambda: GroupNorm(2), (30, 20, 6), lambda x, p: ref.group_norm(x, 2, p["weight"], p["bias"], 1e-5)
    ),
}
"""Images of 600 pixels: more than the 256 of a block, and no multiple of it."""


@pytest.mark.parametrize("case", OF_SAMPLES.values(), ids=OF_SAMPLES)
def test_blocks_of_pixels_join_without_a_seam(case: Case) -> None:
    rig = Rig(case)
    np.testing.assert_allclose(rig.output(rig.x), case.twin(rig.x, rig.named_params), rtol=0, atol=1e-12)
    gradients = [rig.step(rig.x, rig.dy), rig.grads]
    for array, gradient in zip((rig.x, rig.params), gradients, strict=True):
        direction = np.random.default_rng(1).normal(size=array.shape)
        before, ends = array.copy(), []
        for step in (2.0**-17, -(2.0**-17)):
            array[...] = before + step * direction
            ends.append(float(np.vdot(rig.dy, rig.output(rig.x))))
        array[...] = before
        # 10,800 terms of size 1 to 10, rounded to 1.1e-16 each, over a step of 1.5e-5; the product is of size 100.
        assert (ends[0] - ends[1]) / 2.0**-16 == pytest.approx(np.vdot(gradient, direction), abs=1e-5)


@pytest.mark.parametrize("case", OF_SAMPLES.values(), ids=OF_SAMPLES)
def test_samples_of_large_numbers_are_normalised_accurately(case: Case) -> None:
    """The mean is 10^4 deviations: its own rounding is 10^4 2^-24 of one, and the variance is not lost in squares."""
    rig = Rig(case, np.float32)
    x = (1e4 + rig.x).astype(np.float32)
    expected = case.twin(x.astype(float), rig.named_params)
    np.testing.assert_allclose(rig.output(x), expected, rtol=0, atol=4 * 1e4 * 2.0**-24 * np.abs(rig.params).max())


@pytest.mark.parametrize("eps", [1e-12, 1e-5])
def test_rows_of_one_number_each_have_no_variance_below_zero(eps: float) -> None:
    """It is the difference of two sums, which rounding may turn round; what is no number must stay so."""
    values = (10 ** np.random.default_rng(0).uniform(4, 9, size=400)).astype(np.float32)
    x = np.repeat(values, 768).reshape(-1, 768)
    one, y = np.ones(768, np.float32), np.empty_like(x)
    moments = np.empty((400, 2), np.float32)
    sample_norm.normalize_rows(x, one, 0 * one, eps, moments, y)
    assert np.isfinite(y).all()
    x[7, 5] = np.nan
    sample_norm.normalize_rows(x, one, 0 * one, eps, moments, y)
    assert np.isnan(y[7]).all()
    assert np.isfinite(np.delete(y, 7, axis=0)).all()
