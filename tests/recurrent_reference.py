"""Naive twins of the recurrent layers: one sample and one step after the other, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tests.reference import Array, relu, sigmoid


def _lstm_step(a: Array, b: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
    """Return h and c after a step, of what the input gives to the gates and what the state gives."""
    i, f, g, o = np.split(a + b, 4, -1)
    c = sigmoid(f) * state[1] + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def _gru_step(a: Array, b: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
    """Return h after a step."""
    (ar, az, an), (br, bz, bn) = np.split(a, 3, -1), np.split(b, 3, -1)
    z = sigmoid(az + bz)
    return ((1.0 - z) * np.tanh(an + sigmoid(ar + br) * bn) + z * state[0],)


CELLS: dict[str, Callable[[Array, Array, tuple[Array, ...]], tuple[Array, ...]]] = {
    "tanh": lambda a, b, state: (np.tanh(a + b),),
    "relu": lambda a, b, state: (relu(a + b),),
    "lstm": _lstm_step,
    "gru": _gru_step,
}


def sample(
    cell: str, x: Array, weights: Sequence[Array], state: tuple[Array, ...], *, reverse: bool = False
) -> tuple[Array, tuple[Array, ...]]:
    """Return the states (t, h) after each step of one sample (t, features), and the last one of all its parts.

    `weights` are W_ih, W_hh and, if there are any, b_ih and b_hh.
    """
    w_ih, w_hh, b_ih, b_hh = weights if len(weights) == 4 else (*weights, 0.0, 0.0)
    y = np.empty((len(x), w_hh.shape[1]))
    for t in reversed(range(len(x))) if reverse else range(len(x)):
        state = CELLS[cell](w_ih @ x[t] + b_ih, w_hh @ state[0] + b_hh, state)
        y[t] = state[0]
    return y, state


def recurrent(
    cell: str,
    x: Array,
    layers: Sequence[Sequence[Sequence[Array]]],
    lengths: Sequence[int] | None = None,
    between: Callable[[int, Array], Array] = lambda layer, x: x,
) -> Array:
    """Return the states of the last layer after each step, (n, t, ...), zeros beyond each sample's length.

    Each layer is a list of directions, and each of these a list of weights. The second one goes from the last step to
    the first. `between` is told the number of a layer and what the layer before it returns.
    """
    for number, layer in enumerate(layers):
        x = x if number == 0 else between(number, x)
        size = layer[0][1].shape[1]
        y = np.zeros((*x.shape[:2], size * len(layer)))
        for i, length in enumerate([x.shape[1]] * len(x) if lengths is None else lengths):
            for d, weights in enumerate(layer):
                zeros = np.zeros(size), np.zeros(size)
                states, _ = sample(cell, x[i, :length], weights, zeros, reverse=d == 1)
                y[i, :length, d * size : (d + 1) * size] = states
        x = y
    return x
