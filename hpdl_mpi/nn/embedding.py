"""Tokens become vectors, and vectors are told their places in a sequence."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpdl_mpi.base.errors import BadSample, InputError, is_integer, is_number
from hpdl_mpi.kernels import embedding as kernel
from hpdl_mpi.kernels.elementwise import add_row_sums, add_rows
from hpdl_mpi.kernels.gemm import as_matrix
from hpdl_mpi.kernels.recording import replayed
from hpdl_mpi.kernels.rotary import rotate
from hpdl_mpi.nn.context import Context
from hpdl_mpi.nn.init import Initializer, Normal
from hpdl_mpi.nn.layer import Layer, Shape, require_count, require_flag, require_initializer


class Embedding(Layer):
    """y[i] = scale weight[x[i]]: a row of a table for each token.

    Parameters
    ----------
    num_embeddings : int
        Tokens are 0 to below this.
    dim : int
        Of a row.
    mask : int, optional
        A token that stands for nothing, such as padding. With it the result has a second member: 1 where a token is
        another one, and 0 where it is this one.
    scale : float
        The root of `dim` in "Attention is all you need".
    init : Initializer
    """

    replayable = True
    reads_tokens = True

    def __init__(
        self,
        num_embeddings: int,
        dim: int,
        *,
        mask: int | None = None,
        scale: float = 1.0,
        init: Initializer = Normal(1.0),
    ) -> None:
        self.num_embeddings = require_count(self, num_embeddings, "embeddings")
        self.dim = require_count(self, dim, "dim")
        if mask is not None and not (is_integer(mask, 0) and mask < num_embeddings):
            raise self.refuse("mask is no token", found=repr(mask), expected=f"0 to {num_embeddings - 1}, or None")
        if not (is_number(scale) and scale > 0):
            raise self.refuse("scale out of range", found=repr(scale), expected="a number above 0")
        self.mask, self.scale = mask, float(scale)
        self.init = require_initializer(self, init, "init")

    def build(self, input_shape: Shape) -> None:
        self.declare("weight", (self.num_embeddings, self.dim), self.init, (self.num_embeddings, self.dim))

    def output_shape(self, input_shape: Shape) -> Shape:
        shape = (*input_shape, self.dim)
        return shape if self.mask is None else (shape, input_shape)  # type: ignore[return-value]

    def forward(self, x: np.ndarray, ctx: Context) -> Any:
        tokens = x.reshape(-1)
        replayed(self._check, tokens, ctx)
        weight = self.params["weight"]
        y = ctx.take((*x.shape, self.dim), weight.dtype)
        kernel.take_rows(weight, tokens, self.scale, y.reshape(-1, self.dim))
        ctx.save(tokens=tokens)
        if self.mask is None:
            return y
        mask = ctx.take(x.shape, weight.dtype)
        replayed(kernel.mark_others, tokens, self.mask, mask.reshape(-1))
        return y, mask

    def _check(self, tokens: np.ndarray, ctx: Context) -> None:
        bad = kernel.first_outside(tokens, self.num_embeddings)
        if bad >= 0:
            ids = ctx.batch.sample_ids
            raise BadSample(
                "a token is outside the vocabulary",
                sample=int(ids[bad * len(ids) // tokens.size]),
                where="data",
                found=int(tokens[bad]),
                expected=f"0 to {self.num_embeddings - 1}, the rows of {self.path or 'the embedding'}",
                remedy="encode the text with the vocabulary of the model, or give the model a larger one",
            )

    def backward_input(self, dy: Any, ctx: Context) -> None:
        ctx.save(dy=dy if self.mask is None else dy[0])

    def backward_weight(self, ctx: Context) -> None:
        dy = ctx.saved["dy"]
        kernel.add_to_rows(self.grads["weight"], ctx.saved["tokens"], self.scale, dy.reshape(-1, self.dim))
        ctx.drop("tokens", "dy")


class _Positions(Layer):
    """y = x + a row for each step, for samples of shape (steps, dim)."""

    in_place = True

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def _require_steps(self, input_shape: Shape) -> None:
        if len(input_shape) != 2:
            raise self.refuse("needs sequences", found=f"samples of shape {input_shape}", expected="(steps, dim)")

    def _add(self, x: np.ndarray, rows: np.ndarray, ctx: Context) -> np.ndarray:
        y = ctx.reuse_or_take(x)
        add_rows(x.reshape(len(x), rows.size), rows.reshape(-1), y.reshape(len(x), rows.size))
        return y

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray | None:
        if not ctx.needs_dx:
            return None
        ctx.retain(dy)
        return dy


class LearnedPositions(_Positions):
    """y = x + weight[step]: what a place means is learned (Gehring et al., 2017), as in GPT-2.

    Parameters
    ----------
    max_length : int
        Rows of `weight`; a sequence cannot be longer.
    init : Initializer
    name : str
        Of `weight`.
    leading : bool
        Whether `weight` has a dim of 1 in front, and each row a step, as in the files of vision Transformers.
    """

    replayable = True

    def __init__(
        self, max_length: int, *, init: Initializer = Normal(0.02), name: str = "weight", leading: bool = False
    ) -> None:
        self.max_length = require_count(self, max_length, "max_length")
        self.init = require_initializer(self, init, "init")
        self.name, self.leading = name, require_flag(self, leading, "leading")

    def build(self, input_shape: Shape) -> None:
        self._require_steps(input_shape)
        if self.leading and input_shape[0] != self.max_length:
            raise self.refuse(
                "images of another size",
                found=f"{input_shape[0]} steps",
                expected=f"{self.max_length}, each with a row",
            )
        if input_shape[0] > self.max_length:
            raise self._too_long(input_shape[0])
        shape = self.max_length, input_shape[1]
        self.declare(self.name, (1, *shape) if self.leading else shape, self.init, shape)

    def _too_long(self, steps: int) -> InputError:
        return self.refuse(
            "a sequence is longer than the context",
            found=f"{steps} steps",
            expected=f"at most {self.max_length}",
            remedy="cut the sequences (data.context), or give the model a longer context",
        )

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        first, steps = ctx.batch.past, x.shape[1]
        if first + steps > self.max_length:
            raise self._too_long(first + steps)
        return self._add(x, as_matrix(self.params[self.name])[first : first + steps], ctx)

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray | None:
        ctx.save(dy=dy)
        return super().backward_input(dy, ctx)

    def backward_weight(self, ctx: Context) -> None:
        dy = ctx.saved["dy"]
        rows = as_matrix(self.grads[self.name])[: dy.shape[1]]
        add_row_sums(dy.reshape(len(dy), rows.size), rows.reshape(-1))
        ctx.drop("dy")


class SegmentEmbedding(_Positions):
    """y = x + weight[0]: a text that is one segment, where models tell several apart (Devlin et al., "BERT", 2018).

    Parameters
    ----------
    num_segments : int
        Rows of `weight`; the first alone is used and learns.
    init : Initializer
    """

    replayable = True

    def __init__(self, num_segments: int = 2, *, init: Initializer = Normal(0.02)) -> None:
        self.num_segments = require_count(self, num_segments, "segments")
        self.init = require_initializer(self, init, "init")

    def build(self, input_shape: Shape) -> None:
        self._require_steps(input_shape)
        shape = self.num_segments, input_shape[1]
        self.declare("weight", shape, self.init, shape)

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        y = ctx.reuse_or_take(x)
        add_rows(as_matrix(x), self.params["weight"][0], as_matrix(y))
        return y

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray | None:
        ctx.save(dy=dy)
        return super().backward_input(dy, ctx)

    def backward_weight(self, ctx: Context) -> None:
        add_row_sums(as_matrix(ctx.saved["dy"]), self.grads["weight"][0])
        ctx.drop("dy")


class SinusoidalPositions(_Positions):
    """y = x + sines and cosines of the step, of wave lengths from 2 pi to 20,000 pi (Vaswani et al., 2017)."""

    replayable = True

    def __init__(self) -> None:
        self._table = np.zeros((0, 0))

    def build(self, input_shape: Shape) -> None:
        self._require_steps(input_shape)

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        first, steps, dim = ctx.batch.past, x.shape[1], x.shape[2]
        table = self._table
        if len(table) < first + steps or table.shape[1] != dim or table.dtype != x.dtype:
            self._table = table = sinusoids(max(first + steps, ctx.batch.capacity), dim).astype(x.dtype)
        return self._add(x, table[first : first + steps], ctx)


def sinusoids(steps: int, dim: int) -> np.ndarray:
    """Return the table of `SinusoidalPositions`, float64 (steps, dim): sines at even places, cosines at odd ones."""
    place = np.arange(dim)
    angles = np.arange(steps)[:, None] * 10000.0 ** (-(place - place % 2) / dim)
    return np.where(place % 2, np.cos(angles), np.sin(angles))


class Rotary(Layer):
    """Turns queries and keys by angles that grow with their step, so that scores depend on distances.

    Su et al., "RoFormer" (2021), with the pairs of GPT-NeoX and LLaMA. It stands in front of `SelfAttention` and takes
    what that takes.

    Parameters
    ----------
    num_heads : int
    num_kv_heads : int, optional
        As `SelfAttention` has them.
    base : float
        The longest wave is about 2 pi times this many steps.
    """

    replayable = True
    in_place = True

    def __init__(self, num_heads: int, num_kv_heads: int | None = None, *, base: float = 10000.0) -> None:
        self.num_heads = require_count(self, num_heads, "heads")
        self.num_kv_heads = self.num_heads if num_kv_heads is None else require_count(self, num_kv_heads, "kv heads")
        if not (is_number(base) and base > 0):
            raise self.refuse("base out of range", found=repr(base), expected="a number above 0")
        self.base = float(base)
        self._tables = np.zeros((2, 0, 0))

    def build(self, input_shape: Shape) -> None:
        parts = self.num_heads + 2 * self.num_kv_heads
        if len(input_shape) != 2 or input_shape[1] % (2 * parts):
            raise self.refuse(
                "needs the queries, keys and values of heads of an even dim",
                found=f"samples of shape {input_shape}",
                expected=f"(steps, a multiple of {2 * parts})",
            )

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        ctx.save(first=ctx.batch.past)
        return self._rotate(x, ctx.batch.past, 1, ctx)

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray:
        dx = self._rotate(dy, ctx.saved["first"], -1, ctx)
        ctx.drop("first")
        return dx

    def _rotate(self, x: np.ndarray, first: int, direction: int, ctx: Context) -> np.ndarray:
        steps, dim = x.shape[1], x.shape[2] // (self.num_heads + 2 * self.num_kv_heads)
        tables = self._tables
        if tables.shape[1] < first + steps or tables.shape[2] != dim // 2 or tables.dtype != x.dtype:
            count = max(first + steps, ctx.batch.capacity)
            angles = np.arange(count)[:, None] * self.base ** (-2 * np.arange(dim // 2) / dim)
            # the sines of the way back stand behind those of the way there
            self._tables = tables = np.array([np.cos(angles), np.sin(angles), -np.sin(angles)]).astype(x.dtype)
        y = ctx.reuse_or_take(x)
        cosines, sines = tables[0, first : first + steps], tables[direction, first : first + steps]
        rotate(x, cosines, sines, self.num_heads + self.num_kv_heads, y)
        return y
