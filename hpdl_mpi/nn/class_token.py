"""A step in front of a sequence that stands for all of it, and the way to that step alone."""

from __future__ import annotations

import math

import numpy as np

from hpdl_mpi.kernels.elementwise import add_row_sums, copy_columns, fill_rows
from hpdl_mpi.kernels.recording import replayed
from hpdl_mpi.nn.context import Context
from hpdl_mpi.nn.init import Initializer, Normal
from hpdl_mpi.nn.layer import Layer, Shape, require_initializer


class ClassToken(Layer):
    """Puts a learned step in front of others, where attention gathers what tells the class of them all.

    Devlin et al., "BERT" (2018). Samples are of shape (..., dim); all dims but the last become one of steps, and so an
    image (h, w, dim) gives (1 + h w, dim). The parameter has shape (1, 1, dim), as in files of vision Transformers.

    Parameters
    ----------
    init : Initializer
    name : str
        Of the parameter.
    """

    replayable = True

    def __init__(self, *, init: Initializer = Normal(0.02), name: str = "weight") -> None:
        self.init = require_initializer(self, init, "init")
        self.name = name

    def build(self, input_shape: Shape) -> None:
        if len(input_shape) < 2 or min(input_shape) < 1:
            raise self.refuse("needs steps", found=f"samples of shape {input_shape}", expected="(steps, dim)")
        dim = input_shape[-1]
        self.declare(self.name, (1, 1, dim), self.init, (1, dim))

    def output_shape(self, input_shape: Shape) -> Shape:
        return 1 + math.prod(input_shape[:-1]), input_shape[-1]

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        y = ctx.take((len(x), *self.output_shape(x.shape[1:])), x.dtype)
        first, others = _split(y)
        fill_rows(self.params[self.name].reshape(-1), first)
        copy_columns(x.reshape(others.shape), others)
        ctx.save(shape=x.shape)
        return y

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray | None:
        shape = ctx.saved["shape"]
        ctx.drop("shape")
        ctx.save(dy=dy)
        if not ctx.needs_dx:
            return None
        dx = ctx.take(shape, dy.dtype)
        _, others = _split(dy)
        copy_columns(others, dx.reshape(others.shape))
        return dx

    def backward_weight(self, ctx: Context) -> None:
        first, _ = _split(ctx.saved["dy"])
        add_row_sums(first, self.grads[self.name].reshape(-1))
        ctx.drop("dy")


class FirstStep(Layer):
    """Keeps the first step of a sequence alone: (steps, dim) to (dim,)."""

    replayable = True

    def build(self, input_shape: Shape) -> None:
        if len(input_shape) != 2 or input_shape[0] < 1:
            raise self.refuse("needs sequences", found=f"samples of shape {input_shape}", expected="(steps, dim)")

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape[1:]

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        first, _ = _split(x)
        y = ctx.take(first.shape, x.dtype)
        copy_columns(first, y)
        ctx.save(shape=x.shape)
        return y

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray:
        dx = ctx.take(ctx.saved["shape"], dy.dtype)
        ctx.drop("shape")
        first, others = _split(dx)
        copy_columns(dy, first)
        replayed(others.fill, 0)
        return dx


def _split(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first step of each sequence, (n, dim), and all others side by side, as views."""
    n, steps, dim = x.shape
    rows = x.reshape(n, steps * dim)
    return rows[:, :dim], rows[:, dim:]
