"""Recurrent layers under test, and the rig that runs them on activations of several arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hpdl_mpi.nn import GRU, LSTM, RNN, Context, Layer, Layout, MicroBatch, Pool
from tests.unit.nn.rig import SEED, Parameters

STEPS, FEATURES, SIZE = 5, 3, 4

CELLS: dict[str, tuple[Callable[..., Any], str]] = {
    "tanh": (RNN, "tanh"),
    "relu": (lambda *sizes, **settings: RNN(*sizes, nonlinearity="relu", **settings), "relu"),
    "LSTM": (LSTM, "lstm"),
    "GRU": (GRU, "gru"),
}
each_cell = pytest.mark.parametrize(("make", "cell"), CELLS.values(), ids=CELLS)


class Bench:
    """A built layer with random parameters, for activations that are tuples; the pool hands out NaN."""

    def __init__(
        self,
        layer: Layer,
        features: int = FEATURES,
        dtype: type = np.float64,
        scale: float = 1.0,
        *,
        masked: bool = False,
    ) -> None:
        self.layer = layer
        shape: Any = STEPS, features
        layer.build((shape, (STEPS,)) if masked else shape)
        self.layout = Layout(layer)
        self.params, self.grads = self.layout.allocate(dtype), self.layout.allocate(dtype)
        self.layout.bind(layer, self.params, self.grads)
        self.rng = np.random.default_rng(0)
        for values in self.named_params.values():
            values[...] = scale * self.rng.normal(size=values.shape)
        self.pool = Pool(poison=True)
        self.batch = MicroBatch(self.pool, SEED)
        self.ctx = Context(self.batch, needs_dx=True)

    @property
    def named_params(self) -> Parameters:
        return self.layout.views(self.params)

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.normal(size=shape).astype(self.params.dtype)

    def output(self, x: Any) -> Any:
        """Return copies of all that forward returns."""
        self.batch.begin(np.arange(len(x[0] if isinstance(x, tuple) else x)), training=True)
        self.batch.saving = False
        return self._copied(self.layer.forward(x, self.ctx))

    def step(self, x: Any, dy: Any) -> Any:
        """Run forward and backward; add to ``grads``; return copies of all that backward returns."""
        self.batch.begin(np.arange(len(x[0] if isinstance(x, tuple) else x)), training=True)
        self.pool.release(self.layer.forward(x, self.ctx))
        dx = self._copied(self.layer.backward(dy, self.ctx))
        assert self.ctx.leftovers() == []
        return dx

    def _copied(self, result: Any) -> Any:
        """Return copies, and let go of what they are of: the pool has all back."""
        if isinstance(result, tuple):
            copies: Any = tuple(None if member is None else member.copy() for member in result)
        else:
            copies = result.copy()
        self.pool.release(result)
        assert self.pool.bytes_live == 0
        return copies


def make_mask(lengths: list[int], steps: int = STEPS) -> np.ndarray:
    return (np.arange(steps) < np.array(lengths)[:, None]).astype(float)
