"""Models that take sequences in pieces, as when they make them step by step: layers remember what they have seen.

Causal attention remembers keys and values, recurrent layers their states, and what projects the memory of an
encoder-decoder the result of that. So a step costs as much as a step, not as all before it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.kernels.embedding import take_rows
from hpdl_mpi.nn.attention import SelfAttention
from hpdl_mpi.nn.containers import Sequential
from hpdl_mpi.nn.context import Context, MicroBatch
from hpdl_mpi.nn.dropout import Dropout
from hpdl_mpi.nn.embedding import LearnedPositions
from hpdl_mpi.nn.layer import Layer, Shape, walk
from hpdl_mpi.nn.linear import Linear
from hpdl_mpi.nn.members import joined_members
from hpdl_mpi.nn.normalization import LayerNorm, RMSNorm
from hpdl_mpi.nn.pool import Pool

_OF_A_STEP = (Dropout, LayerNorm, Linear, RMSNorm)
"""Layers at the end of a model that look at one step at a time."""

_BOUNDED = (LearnedPositions, SelfAttention)
"""Layers that have room for so many steps; others, such as recurrent ones, remember a state."""


class LastStep(Layer):
    """y = the last step of a sequence, (1, features), for samples of shape (steps, features). For inference alone."""

    def output_shape(self, input_shape: Shape) -> Shape:
        return (1, *input_shape[1:])

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        if x.shape[1] == 1:
            ctx.retain(x)
            return x
        y = ctx.take((len(x), 1, *x.shape[2:]), x.dtype)
        np.copyto(y, x[:, -1:])
        return y

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray | None:
        raise AssertionError("a decoder does not learn")


class Decoder:
    """Runs a model on sequences that come in pieces, and returns what it makes of the last step of each piece.

    The first call takes the begin of all sequences, such as their prompts; later ones take what follows. A steady
    step allocates nothing, but for `reorder`.

    Parameters
    ----------
    model : Sequential
        Built, with parameters. Its outputs are logits of what follows each step. Borrowed.
    input_shape : tuple of int, or tuple of such
        Of the samples that it was built for.
    capacity : int
        Steps that attention remembers.
    given : tuple of array
        Members of the activation that follow the tokens, the same for all pieces: memory and mask of an
        encoder-decoder. Borrowed.
    slides : bool
        Whether sequences may be longer than `capacity`. The later half of what was seen is then read anew, as if it
        were the begin, and the rest forgotten; but recurrent layers, which remember a state, go on for ever.
    """

    def __init__(
        self,
        model: Layer,
        input_shape: Shape,
        capacity: int,
        *,
        given: tuple[np.ndarray, ...] = (),
        slides: bool = False,
    ) -> None:
        self._model = of_last_step(model, input_shape)
        self._given = given
        self._slides = slides
        self._is_bounded = any(isinstance(layer, _BOUNDED) for layer in walk(model))
        self._seen = np.zeros((0, capacity), np.int64)
        self._batch = MicroBatch(Pool())
        self._batch.capacity = capacity
        self._ctx = Context(self._batch, needs_backward=False)
        self._logits: np.ndarray | None = None

    @property
    def past(self) -> int:
        """Steps that layers remember now."""
        return self._batch.past

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        """Return the logits of what follows the next piece of each sequence.

        Parameters
        ----------
        tokens : int64 array, shape (n, steps)
            C-contiguous; steps at least 1. n is that of the first call, or of the last `reorder`.

        Returns
        -------
        array, shape (n, vocabulary)
            Borrowed until the next call.

        Raises
        ------
        InputError
            These are no tokens, or of other sequences, or these are longer than the capacity, and do not slide.
        """
        if tokens.dtype != np.int64 or tokens.ndim != 2 or not tokens.size or not tokens.flags.c_contiguous:
            raise InputError(
                "no piece of sequences",
                found=f"shape {tokens.shape}, {tokens.dtype}, strides {tokens.strides}",
                expected="C-contiguous int64 tokens, (n, steps), one at least",
            )
        others = {len(self._seen)} if self.past else {len(array) for array in self._given}
        if others - {len(tokens)}:
            found, expected = f"{len(tokens)} of them", " or ".join(map(str, sorted(others)))
            raise InputError("pieces of other sequences", found=found, expected=expected, remedy="reorder, or forget")
        capacity = self._batch.capacity
        if self.past == 0:
            self._seen = np.zeros((len(tokens), capacity), np.int64)
        if self._is_bounded and self.past + tokens.shape[1] > capacity:
            tokens = self._later_half(tokens)
        self._batch.pool.release(self._logits)
        self._logits = None
        if len(self._batch.sample_ids) != len(tokens):
            self._batch.begin(np.arange(len(tokens)), training=False)
        outputs = self._model.forward(joined_members((tokens, *self._given)), self._ctx)
        if self.past + tokens.shape[1] <= capacity:
            self._seen[:, self.past : self.past + tokens.shape[1]] = tokens
        self._batch.past += tokens.shape[1]
        self._logits = outputs
        return outputs[:, 0]

    def _later_half(self, tokens: np.ndarray) -> np.ndarray:
        """Forget all, and return what to read anew: half as many steps as can be remembered."""
        capacity = self._batch.capacity
        if not self._slides:
            raise InputError(
                "a sequence is longer than the context",
                found=f"{self.past + tokens.shape[1]} steps",
                expected=f"at most {capacity}",
                remedy="make fewer tokens, or train the model with a longer context",
            )
        everything = np.concatenate([self._seen[:, : self.past], tokens], axis=1)
        self.forget()
        return np.ascontiguousarray(everything[:, -max(1, capacity // 2) :])

    def forget(self) -> None:
        """Begin new sequences with the next call."""
        for ctx in self._ctx.descendants():
            for array, _ in ctx.remembered.values():
                ctx.release(array)
            ctx.remembered.clear()
        self._batch.past = 0

    def reorder(self, parents: np.ndarray) -> None:
        """Let sequence i go on as sequence ``parents[i]`` did so far; int64 (m,), and m may differ from n.

        Raises
        ------
        InputError
            There is no such sequence.
        """
        count = len(self._seen)
        if not parents.size or not 0 <= parents.min() <= parents.max() < count:
            raise InputError("no such sequences", where="parents", found=parents, expected=f"some of {count}, from 0")
        if np.array_equal(parents, np.arange(len(self._seen))):
            return
        self._seen = self._seen[parents]
        self._given = tuple(array[parents] for array in self._given)
        for ctx in self._ctx.descendants():
            for name, (array, grows) in ctx.remembered.items():
                used = math.prod(array.shape[2:]) * self.past if grows else math.prod(array.shape[1:])
                copy = ctx.take((len(parents), *array.shape[1:]), array.dtype)
                rows, target = (whole.reshape(len(whole), -1)[:, :used] for whole in (array, copy))
                take_rows(rows, parents, 1.0, target)
                ctx.remember(name, copy, grows=grows)
                ctx.release(copy)


def of_last_step(model: Layer, input_shape: Shape) -> Layer:
    """Return a model of the same layers whose last ones look at the last step alone: logits of others are not made.

    Parameters
    ----------
    model : Sequential
        Built for samples of `input_shape`, an array.
    input_shape : tuple of int, or tuple of such

    Raises
    ------
    InputError
        The model is no Sequential, or its outputs are none of sequences.
    """
    shape: Any = model.output_shape(input_shape)
    if not isinstance(model, Sequential) or len(shape) != 2 or isinstance(shape[0], tuple):
        raise InputError(
            "the model does not make logits of steps",
            where="model",
            found=f"a {type(model).__name__} with outputs of shape {shape}",
            expected="a Sequential with outputs of shape (steps, vocabulary)",
        )
    names = list(model.children)
    split = len(names)
    while split > 0 and isinstance(model.children[names[split - 1]], _OF_A_STEP):
        split -= 1
    layers = [(name, model.children[name]) for name in names]
    result = Sequential(**dict([*layers[:split], ("#last step", LastStep()), *layers[split:]]))
    result.path = model.path
    result.build(input_shape)
    model.join_tied()
    return result
