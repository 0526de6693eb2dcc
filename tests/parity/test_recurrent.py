"""Recurrent layers against PyTorch's, on the same parameters: lengths as packed sequences, states as detached ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn as tnn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from hpdl_mpi import nn
from tests.parity.convert import assert_close, assert_gradients_close, load, to_torch
from tests.unit.nn.recurrent_rig import Bench

pytestmark = pytest.mark.parity

STEPS, FEATURES, SIZE = 7, 5, 6
LENGTHS = [4, 7, 1, 7, 2]

LAYERS: dict[str, tuple[Callable[..., nn.Layer], Callable[..., tnn.Module]]] = {
    "RNN": (nn.RNN, tnn.RNN),
    "RNN, ReLU": (
        lambda *sizes, **settings: nn.RNN(*sizes, nonlinearity="relu", **settings),
        lambda *sizes, **settings: tnn.RNN(*sizes, nonlinearity="relu", **settings),
    ),
    "LSTM": (nn.LSTM, tnn.LSTM),
    "GRU": (nn.GRU, tnn.GRU),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "layers": {"num_layers": 3},
    "both directions": {"num_layers": 2, "bidirectional": True},
    "no bias": {"bias": False},
}

each_layer = pytest.mark.parametrize(("ours", "theirs"), LAYERS.values(), ids=LAYERS)
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def make_both(ours: Any, theirs: Any, dtype: type, settings: dict[str, Any], **own: Any) -> tuple[Bench, Any]:
    bench = Bench(ours(SIZE, **settings, **own), FEATURES, dtype, scale=0.5)
    module = theirs(FEATURES, SIZE, batch_first=True, **settings).to(to_torch(bench.params).dtype)
    load(module, bench.named_params)
    return bench, module


@each_dtype
@each_layer
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_layer_is_that_of_pytorch(ours: Any, theirs: Any, settings: dict[str, Any], dtype: type) -> None:
    bench, module = make_both(ours, theirs, dtype, settings)
    values = bench.normal(len(LENGTHS), STEPS, FEATURES)
    x = to_torch(values).requires_grad_()
    y, _ = module(x)
    dy = bench.normal(*y.shape)
    y.backward(to_torch(dy))
    assert_close(bench.output(values), y)
    assert_close(bench.step(values, dy), x.grad)
    assert_gradients_close(bench.layout.views(bench.grads), module)


@each_dtype
@each_layer
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_lengths_are_those_of_packed_sequences(ours: Any, theirs: Any, settings: dict[str, Any], dtype: type) -> None:
    bench, module = make_both(ours, theirs, dtype, settings, carry=True)
    values = bench.normal(len(LENGTHS), STEPS, FEATURES)
    mask = (np.arange(STEPS) < np.array(LENGTHS)[:, None]).astype(dtype)
    x = to_torch(values).requires_grad_()
    packed, states = module(pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False))
    y, _ = pad_packed_sequence(packed, batch_first=True)
    states = states if isinstance(states, tuple) else (states,)
    dy, dstates = bench.normal(*y.shape), [bench.normal(len(LENGTHS), len(states[0]), SIZE) for _ in states]
    torch.autograd.backward([y, *states], [to_torch(dy), *(to_torch(gradient).transpose(0, 1) for gradient in dstates)])
    found, _, *last = bench.output((values, mask))
    assert_close(found, y)
    for mine, state in zip(last, states, strict=True):
        assert_close(mine, state.transpose(0, 1))
    dx, _ = bench.step((values, mask), (dy, None, *dstates))
    assert_close(dx, x.grad)
    assert_gradients_close(bench.layout.views(bench.grads), module)


@each_dtype
@each_layer
def test_truncated_back_propagation_is_that_of_detached_states(ours: Any, theirs: Any, dtype: type) -> None:
    """Sequences in three pieces: the gradients of each end at its beginning."""
    bench, module = make_both(ours, theirs, dtype, {"num_layers": 2}, carry=True)
    values, dy = bench.normal(3, 3 * STEPS, FEATURES), bench.normal(3, 3 * STEPS, SIZE)
    pieces = [slice(start, start + STEPS) for start in range(0, 3 * STEPS, STEPS)]

    detached: Any = None
    states: list[np.ndarray] = []
    for piece in pieces:
        x = to_torch(values[:, piece]).requires_grad_()
        expected, detached = module(x, detached)
        expected.backward(to_torch(dy[:, piece]))
        detached = tuple(s.detach() for s in detached) if isinstance(detached, tuple) else detached.detach()

        inputs = values[:, piece].copy(), *states
        y, *after = bench.output(inputs)
        assert_close(y, expected)
        dx = bench.step(inputs, (dy[:, piece].copy(), *[None] * len(after)))
        assert_close(dx[0] if states else dx, x.grad)
        states = after
    assert_gradients_close(bench.layout.views(bench.grads), module)
