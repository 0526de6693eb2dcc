"""Dropout, drawn per sample."""

from __future__ import annotations

import abc
import math

import numpy as np

from hpdl_mpi.base.errors import is_number
from hpdl_mpi.kernels import random as kernel
from hpdl_mpi.nn.context import Context
from hpdl_mpi.nn.layer import Layer, Shape


class _Dropout(Layer):
    """Zeroes some of its input with probability `rate` while training and scales the rest by 1 / (1 - rate).

    What is dropped depends on (seed, epoch, sample id, layer path, place in the sample), so it is the same on every
    grid of ranks, and backward draws it again instead of keeping a mask.
    """

    def __init__(self, rate: float = 0.5) -> None:
        if not (is_number(rate) and 0 <= rate < 1):
            raise self.refuse("rate out of range", found=repr(rate), expected="at least 0 and below 1")
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
        y = ctx.reuse_or_take(x)
        self._write(x, y, ctx)
        return y

    @abc.abstractmethod
    def _write(self, x: np.ndarray, y: np.ndarray, ctx: Context) -> None:
        """Write to y what is left of x."""


class Dropout(_Dropout):
    """Zeroes each element with probability `rate` while training and scales the rest by 1 / (1 - rate).

    Srivastava et al. (2014).
    """

    replayable = True
    in_place = True

    def _write(self, x: np.ndarray, y: np.ndarray, ctx: Context) -> None:
        rows = (len(x), math.prod(x.shape[1:]))
        kernel.dropout(x.reshape(rows), ctx.key, ctx.batch.sample_ids, self.rate, y.reshape(rows))


class Dropout2d(_Dropout):
    """Zeroes each channel of a sample with probability `rate` while training and scales the rest by 1 / (1 - rate).

    Tompson et al., "Efficient object localization using convolutional networks" (2015). Samples are of any shape,
    channels last.
    """

    replayable = True

    def build(self, input_shape: Shape) -> None:
        if not input_shape:
            raise self.refuse("needs channels", found="samples that are single numbers", expected="at least one dim")

    def _write(self, x: np.ndarray, y: np.ndarray, ctx: Context) -> None:
        pixels = (len(x), math.prod(x.shape[1:-1]), x.shape[-1])
        factors = ctx.take((len(x), x.shape[-1]), x.dtype)
        kernel.dropout_channels(x.reshape(pixels), ctx.key, ctx.batch.sample_ids, self.rate, factors, y.reshape(pixels))
        ctx.release(factors)


class StochasticDepth(_Dropout):
    """Zeroes each sample with probability `rate` while training and scales the rest by 1 / (1 - rate).

    Huang et al., "Deep networks with stochastic depth" (2016): at the end of the body of a `Residual` it lets some
    samples pass by the shortcut alone.
    """

    replayable = True

    def _write(self, x: np.ndarray, y: np.ndarray, ctx: Context) -> None:
        rows = (len(x), math.prod(x.shape[1:]))
        kernel.dropout_samples(x.reshape(rows), ctx.key, ctx.batch.sample_ids, self.rate, y.reshape(rows))
