"""Normalisation layers."""

from __future__ import annotations

import math

import numpy as np

from hpdl_mpi.kernels import normalization as kernel
from hpdl_mpi.nn.context import Context
from hpdl_mpi.nn.init import Constant
from hpdl_mpi.nn.layer import Layer, Shape


class BatchNorm2d(Layer):
    """Normalises each channel over a micro-batch, then scales and shifts it (Ioffe and Szegedy, 2015).

    Samples are of any shape, channels last. While training, means and variances are those of the micro-batch, and
    running ones follow them; evaluation takes the running ones.

    Parameters
    ----------
    eps : float
        Added to variances.
    momentum : float
        How much of the running values a micro-batch replaces.
    relu : bool
        Also do what a `ReLU` behind it would: one pass over memory less.
    """

    def __init__(self, *, eps: float = 1e-5, momentum: float = 0.1, relu: bool = False) -> None:
        if not 0 < eps < math.inf:
            raise self.refuse("eps out of range", found=eps, expected="a number above 0")
        if not 0 < momentum <= 1:
            raise self.refuse("momentum out of range", found=momentum, expected="above 0, at most 1")
        self.eps, self.momentum, self.relu = eps, momentum, relu

    def build(self, input_shape: Shape) -> None:
        if not input_shape or min(input_shape) < 1:
            raise self.refuse("needs channels", found=f"samples of shape {input_shape}", expected="at least one")
        channels = input_shape[-1:]
        self.declare("weight", channels, Constant(1.0), decay=False)
        self.declare("bias", channels, Constant(0.0), decay=False)
        self.declare_statistic("running_mean", channels, Constant(0.0))
        self.declare_statistic("running_var", channels, Constant(1.0))

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        rows = x.reshape(-1, x.shape[-1])
        y = ctx.take(x.shape, x.dtype)
        moments = ctx.take((2, rows.shape[1]), np.float64)
        if ctx.training and len(rows):
            self._measure(rows, moments, ctx)
        else:
            moments[0], moments[1] = self.statistics["running_mean"], self.statistics["running_var"]
        # mean, 1 / deviation, scale, shift
        factors = ctx.take((4, rows.shape[1]), x.dtype)
        mean, inverse, scale, shift = factors
        mean[...] = moments[0]
        np.add(moments[1], self.eps, out=moments[1])
        np.sqrt(moments[1], out=moments[1])
        np.divide(1.0, moments[1], out=inverse, casting="same_kind")
        np.multiply(self.params["weight"], inverse, out=scale)
        np.multiply(mean, scale, out=shift)
        np.subtract(self.params["bias"], shift, out=shift)
        ctx.release(moments)
        kernel.normalize(rows, scale, shift, self.relu, y.reshape(rows.shape))
        ctx.save(x=x, factors=factors)
        ctx.release(factors)
        return y

    def _measure(self, rows: np.ndarray, moments: np.ndarray, ctx: Context) -> None:
        """Write mean and variance of a micro-batch, and let the running ones follow."""
        partial = ctx.take(kernel.partial_shape(*rows.shape), rows.dtype)
        kernel.moments(rows, partial, moments)
        ctx.release(partial)
        if ctx.batch.recomputing:
            return
        # The running variance is that of all samples, of which a micro-batch is a part.
        unbiased = len(rows) / max(1, len(rows) - 1)
        for name, value, share in (("running_mean", moments[0], 1.0), ("running_var", moments[1], unbiased)):
            running = self.statistics[name]
            running *= 1 - self.momentum
            running += self.momentum * share * value

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray | None:
        x, (mean, inverse, scale, shift) = ctx.saved["x"], ctx.saved["factors"]
        rows, gradients = (array.reshape(-1, array.shape[-1]) for array in (x, dy))
        sums = ctx.take((2, rows.shape[1]), np.float64)
        partial = ctx.take(kernel.partial_shape(*rows.shape), rows.dtype)
        kernel.gradient_sums(rows, gradients, mean, scale, shift, self.relu, partial, sums)
        ctx.release(partial)
        sums[1] *= inverse
        dx = self._differentiate(rows, gradients, ctx.saved["factors"], sums, ctx) if ctx.needs_dx else None
        ctx.save(sums=sums)
        ctx.release(sums)
        ctx.drop("x", "factors")
        return None if dx is None else dx.reshape(x.shape)

    def _differentiate(
        self, rows: np.ndarray, gradients: np.ndarray, factors: np.ndarray, sums: np.ndarray, ctx: Context
    ) -> np.ndarray:
        """Return dx, (rows, channels), from the gradients of bias and weight."""
        mean, inverse, scale, shift = factors
        means = ctx.take((3, rows.shape[1]), rows.dtype)
        count = max(1, len(rows))
        means[0] = scale
        means[1] = -scale * inverse * sums[1] / count
        means[2] = -scale * sums[0] / count - means[1] * mean
        dx = ctx.take(rows.shape, rows.dtype)
        kernel.backward_input(rows, gradients, scale, shift, self.relu, means, dx)
        ctx.release(means)
        return dx

    def backward_weight(self, ctx: Context) -> None:
        self.grads["bias"] += ctx.saved["sums"][0]
        self.grads["weight"] += ctx.saved["sums"][1]
        ctx.drop("sums")
