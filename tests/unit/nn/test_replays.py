"""Layers that say that they are replayable: what was recorded for a batch gives the bits of any other."""

from __future__ import annotations

import numpy as np
import pytest

from hpdl_mpi import nn
from hpdl_mpi.kernels.recording import recording, replayed
from hpdl_mpi.nn import is_replayable
from tests.unit.nn.cases import LAYERS
from tests.unit.nn.rig import BATCH, IDS, Case, Rig

REPLAYABLE = {name: case for name, case in LAYERS.items() if is_replayable(case.make())}

PUBLIC = {getattr(nn, name) for name in nn.__all__ if isinstance(getattr(nn, name), type)}


def test_all_layers_that_say_so_are_among_the_cases_or_read_tokens() -> None:
    shown = {type(layer) for case in REPLAYABLE.values() for layer in nn.walk(case.make())}
    claimed = {kind for kind in PUBLIC if issubclass(kind, nn.Layer) and vars(kind).get("replayable")}
    assert claimed - shown == {nn.Embedding}


@pytest.mark.parametrize("needs_dx", [False, True])
@pytest.mark.parametrize("case", REPLAYABLE.values(), ids=REPLAYABLE.keys())
def test_replays_give_the_bits_of_ordinary_steps(case: Case, needs_dx: bool) -> None:
    rig, twin = Rig(case, needs_dx=needs_dx), Rig(case, needs_dx=needs_dx)
    rng = np.random.default_rng(1)
    x, dy, ids = rig.x.copy(), rig.dy.copy(), IDS.copy()
    y, dx = np.zeros_like(dy), np.zeros_like(x)

    def step() -> None:
        rig.batch.begin(ids, training=True)
        output = rig.layer.forward(x, rig.ctx)
        replayed(np.copyto, y, output)
        rig.pool.release(output)
        gradient = rig.layer.backward(dy, rig.ctx)
        if gradient is not None:
            replayed(np.copyto, dx, gradient)
        rig.pool.release(gradient)

    with recording() as recorded:
        step()
    extent = rig.pool.extent
    twin.step(x, dy, ids)
    for _ in range(2):
        x[...], dy[...] = rng.normal(size=x.shape), rng.normal(size=dy.shape)
        ids[...] = rng.integers(2**50, size=BATCH)
        rig.params[...] += 0.25
        twin.params[...] += 0.25
        held = rig.pool.take_extent(extent)  # full of NaN
        recorded.replay()
        rig.pool.release(held)
        np.testing.assert_array_equal(y, twin.output(x, ids))
        expected = twin.step(x, dy, ids)
        if expected is not None:
            np.testing.assert_array_equal(dx, expected)
        np.testing.assert_array_equal(rig.grads, twin.grads)


def test_what_a_class_inherits_does_not_count() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: np.ndarray, ctx: nn.Context) -> np.ndarray:
            return super().forward(2 * x, ctx)

    assert is_replayable(nn.Sequential(nn.Linear(2), nn.ReLU()))
    assert not is_replayable(nn.Sequential(Doubled(2), nn.ReLU()))
