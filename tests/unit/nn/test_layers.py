"""What every layer promises, shown for each row of the table in `cases`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from hpdl_mpi.nn import Sequential
from tests.unit.nn.cases import LAYERS
from tests.unit.nn.rig import BATCH, IDS, Case, Rig

pytestmark = pytest.mark.parametrize("case", LAYERS.values(), ids=LAYERS.keys())

ROUNDING = 1e-13
"""float64: a few hundred terms of size 1 to 10 in another order, each rounded to 1.1e-16."""

STEP = 2.0**-17
"""Of central differences: the cube root of the rounding, where truncation and rounding are alike."""

DIFFERENCES = 1e-7
"""Truncation, STEP^2 / 6 times a third derivative, is 1e-11 times some 10^2; rounding, 1e-16 / STEP times sums of some
hundreds, is 1e-9 times some 10. A wrong gradient is wrong by 0.1 and more."""


def differences(function: Callable[[], float], array: np.ndarray) -> np.ndarray:
    """Return the gradient of function() for `array`, which it reads, by central differences."""
    gradient = np.empty_like(array)
    flat, out = array.reshape(-1), gradient.reshape(-1)
    for i, value in enumerate(flat.copy()):
        flat[i] = value + STEP
        above = function()
        flat[i] = value - STEP
        out[i] = (above - function()) / (2 * STEP)
        flat[i] = value
    return gradient


def test_output_is_that_of_the_naive_twin(case: Case) -> None:
    rig = Rig(case)
    y = rig.output(rig.x)
    np.testing.assert_allclose(y, case.twin(rig.x, rig.named_params), rtol=0, atol=case.rounding * ROUNDING)


def test_output_has_the_shape_foretold(case: Case) -> None:
    rig = Rig(case)
    assert rig.output(rig.x).shape == (BATCH, *rig.layer.output_shape(case.input_shape))


def test_gradients_are_those_of_finite_differences(case: Case) -> None:
    rig = Rig(case)
    dx = rig.step(rig.x, rig.dy)

    def product() -> float:
        return float(np.vdot(rig.dy, rig.output(rig.x)))

    np.testing.assert_allclose(dx, differences(product, rig.x), rtol=0, atol=case.rounding * DIFFERENCES)
    gradients = rig.layout.views(rig.grads)
    for name, values in rig.named_params.items():
        expected = differences(product, values)
        np.testing.assert_allclose(gradients[name], expected, rtol=0, atol=case.rounding * DIFFERENCES, err_msg=name)


def test_input_half_then_weight_half_is_backward_to_the_bit(case: Case) -> None:
    whole, halves = Rig(case), Rig(case)
    np.testing.assert_array_equal(halves.step(halves.x, halves.dy, halves=True), whole.step(whole.x, whole.dy))
    np.testing.assert_array_equal(halves.grads, whole.grads)


def test_micro_batches_add_up_to_the_batch(case: Case) -> None:
    whole, parts = Rig(case), Rig(case)
    if case.mixes:  # each is a batch of its own
        for s in (slice(0, 1), slice(1, None)):
            found, expected = parts.output(parts.x[s], IDS[s]), case.twin(parts.x[s], parts.named_params)
            np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING)
        return
    dx = whole.step(whole.x, whole.dy)
    pieces = [parts.step(parts.x[s], parts.dy[s], IDS[s]) for s in (slice(0, 1), slice(1, 1), slice(1, None))]
    np.testing.assert_allclose(np.concatenate(pieces), dx, rtol=0, atol=case.rounding * ROUNDING)
    np.testing.assert_allclose(parts.grads, whole.grads, rtol=0, atol=case.rounding * ROUNDING)


def test_inputs_and_incoming_gradients_are_only_read(case: Case) -> None:
    rig = Rig(case)
    before = [array.copy() for array in (rig.x, rig.dy, rig.params)]
    rig.step(rig.x, rig.dy)
    for array, copy in zip((rig.x, rig.dy, rig.params), before, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("needs_dx", [False, True])
def test_step_gives_back_every_buffer_and_reads_none_before_it_is_written(
    case: Case, needs_dx: bool, halves: bool
) -> None:
    rig = Rig(case, needs_dx=needs_dx)
    # The arrays come from the pool, as they do inside a model, so that holding them too long or too briefly shows.
    x, dy = (rig.pool.take(array.shape, array.dtype) for array in (rig.x, rig.dy))
    x[...], dy[...] = rig.x, rig.dy
    live = rig.pool.bytes_live
    for _ in range(2):
        dx = rig.step(x, dy, halves=halves)
        assert rig.pool.bytes_live == live
        assert rig.ctx.leftovers() == []
    np.testing.assert_array_equal(x, rig.x)
    np.testing.assert_array_equal(dy, rig.dy)
    rig.pool.release(x)
    rig.pool.release(dy)
    assert rig.pool.bytes_live == 0
    assert np.isfinite(rig.grads).all()
    assert dx is None or np.isfinite(dx).all()


def test_nothing_is_written_outside_of_arrays(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    arenas: list[tuple[np.ndarray, np.ndarray]] = []

    def guarded(nbytes: int) -> np.ndarray:
        arena = np.full(nbytes + 4096, 165, np.uint8)
        start = 2048 - (arena.ctypes.data + 2048) % 64
        arena[start : start + nbytes] = 0
        arenas.append((arena[:start], arena[start + nbytes :]))
        return arena[start : start + nbytes]

    monkeypatch.setattr("hpdl_mpi.nn.pool.heap", guarded)
    rig = Rig(case, allocate=guarded)
    rig.step(rig.x, rig.dy)
    assert all((guard == 165).all() for guards in arenas for guard in guards)
    used = np.zeros(rig.layout.size, bool)
    for segment in rig.layout.segments:
        used[segment.start : segment.stop] = True
    assert not rig.grads[~used].any()


def test_steps_of_the_same_shape_take_the_same_memory(case: Case) -> None:
    rig = Rig(case)
    rig.step(rig.x, rig.dy)
    held = rig.pool.bytes_held
    rig.step(rig.x, rig.dy)
    assert rig.pool.bytes_held == held


def test_first_layer_of_a_model_returns_no_gradient_of_its_input(case: Case) -> None:
    whole, first = Rig(case), Rig(case._replace(make=lambda: Sequential(case.make())), needs_dx=False)
    whole.step(whole.x, whole.dy)
    assert first.step(first.x, first.dy) is None
    np.testing.assert_array_equal(first.grads, whole.grads)


def test_evaluation_keeps_nothing(case: Case) -> None:
    rig = Rig(case)
    rig.batch.begin(IDS, training=False)
    y = rig.layer.forward(rig.x, rig.ctx)
    assert rig.ctx.leftovers() == []
    rig.pool.release(y)
    assert rig.pool.bytes_live == 0


def test_samples_do_not_see_their_neighbours(case: Case) -> None:
    rig = Rig(case)
    output = partial(rig.output, training=not case.mixes)
    y = output(rig.x)
    np.testing.assert_allclose(output(rig.x[1:2], IDS[1:2]), y[1:2], rtol=0, atol=case.rounding * ROUNDING)
    order = np.array([2, 0, 1])
    np.testing.assert_allclose(output(rig.x[order], IDS[order]), y[order], rtol=0, atol=case.rounding * ROUNDING)


def test_nan_survives_and_goes_where_the_definition_says(case: Case) -> None:
    rig = Rig(case)
    rig.x[0].reshape(-1)[0] = np.nan
    found, expected = rig.output(rig.x), case.twin(rig.x, rig.named_params)
    if case.tiled or case.joined:
        assert np.isnan(found)[np.isnan(expected)].all()
        assert np.isfinite(found[1:]).all()
    else:
        np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))


def test_single_precision_agrees_with_double(case: Case) -> None:
    """An array's error is below n u times the largest sum of absolute terms, n operations deep (Higham, 2002, 3.1).

    The sums of absolute terms are those of a run on absolute values, whose inputs are of size 1 themselves; n is at
    most the elements of the largest array for every layer, and the operations of an elementary function. What mixes
    the terms of a tile is run on the largest value everywhere, for which `amplification` holds.
    """
    single, double, absolute = Rig(case, np.float32), Rig(case), Rig(case, positive=True)
    for rig in (double, absolute):
        for of, array in zip(("params", "x", "dy"), (single.params, single.x, single.dy), strict=True):
            sizes = np.abs(array).max(initial=0.0) if case.tiled else np.abs(array)
            getattr(rig, of)[...] = sizes if rig is absolute else array
    terms = rig.depth * (8 + max(single.x.size, single.dy.size))
    results = [(rig.output(rig.x), rig.step(rig.x, rig.dy), rig.grads) for rig in (single, double, absolute)]
    for found, expected, sums in zip(*results, strict=True):
        assert found.dtype == np.float32
        if found.size:
            bound = case.rounding * terms * 2.0**-24 * (1.0 + np.abs(sums).max())
            np.testing.assert_allclose(found, expected, rtol=0, atol=bound)
