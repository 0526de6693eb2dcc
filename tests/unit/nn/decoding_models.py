"""Small models that can be decoded, built, with random parameters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hpdl_mpi.models import gpt, llama
from hpdl_mpi.nn import (
    GRU,
    LSTM,
    Embedding,
    Layer,
    Layout,
    LearnedPositions,
    Linear,
    Residual,
    RMSNorm,
    Rotary,
    SelfAttention,
    Sequential,
    Shape,
    SinusoidalPositions,
)

VOCABULARY, STEPS = 11, 12


def _rotary() -> Layer:
    heads = Sequential(Linear(32), Rotary(4, 2), SelfAttention(4, 2, causal=True), Linear(8))
    return Sequential(Embedding(VOCABULARY, 8), Residual(heads), RMSNorm(), Linear(VOCABULARY))


def _sinusoidal() -> Layer:
    heads = Sequential(Linear(36), SelfAttention(3, causal=True), Linear(10))
    return Sequential(Embedding(VOCABULARY, 10), SinusoidalPositions(), Residual(heads), Linear(VOCABULARY))


def _learned() -> Layer:
    heads = Sequential(Linear(24), SelfAttention(2, causal=True), Linear(8))
    return Sequential(Embedding(VOCABULARY, 8), LearnedPositions(STEPS), heads, Linear(VOCABULARY, bias=False)).tie(
        "3.weight", to="0.weight"
    )


MODELS: dict[str, Callable[[], Layer]] = {
    "gpt": lambda: gpt(VOCABULARY, STEPS, layers=2, heads=2, width=16),
    "llama": lambda: llama(VOCABULARY, layers=2, heads=4, kv_heads=2, width=16, hidden=24),
    "rotary, shared keys": _rotary,
    "sinusoidal": _sinusoidal,
    "learned positions, tied": _learned,
    "lstm": lambda: Sequential(Embedding(VOCABULARY, 6), LSTM(9, 2), Linear(VOCABULARY)),
    "gru": lambda: Sequential(Embedding(VOCABULARY, 6), GRU(5), Linear(VOCABULARY)),
}


def built(model: Layer, input_shape: Shape = (STEPS,), dtype: type = np.float64, *, deviation: float = 0.5) -> Layer:
    """Return a model that is built, with random parameters of its own."""
    model.build(input_shape)
    layout = Layout(model)
    params, grads = layout.allocate(dtype), layout.allocate(dtype)
    layout.bind(model, params, grads)
    params[:] = np.random.default_rng(0).normal(scale=deviation, size=params.shape)
    return model
