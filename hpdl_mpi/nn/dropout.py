"""Dropout, drawn per sample."""

from __future__ import annotations

import math

import numpy as np

from hpdl_mpi.kernels import random as kernel
from hpdl_mpi.nn.context import Context
from hpdl_mpi.nn.layer import Layer, Shape


class Dropout(Layer):
    """Zeroes each element with probability `rate` while training and scales the rest by 1 / (1 - rate).

    Srivastava et al. (2014). What is dropped depends on (seed, epoch, sample id, layer path, element), so it is the
    same on every grid of ranks, and backward draws it again instead of keeping a mask.
    """

    def __init__(self, rate: float = 0.5) -> None:
        if not 0 <= rate < 1:
            raise self.refuse("rate out of range", found=rate, expected="at least 0 and below 1")
        self.rate = rate

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        return self._drop(x, ctx)

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray:
        return self._drop(dy, ctx)

    def _drop(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        if not ctx.training or self.rate == 0:
            ctx.retain(x)
            return x
        y = ctx.take(x.shape, x.dtype)
        rows = (len(x), math.prod(x.shape[1:]))
        kernel.dropout(x.reshape(rows), ctx.key, ctx.batch.sample_ids, self.rate, y.reshape(rows))
        return y
