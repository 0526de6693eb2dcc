"""Normalisation layers."""

from __future__ import annotations

import math

import numpy as np

from hpdl_mpi.kernels import normalization as kernel
from hpdl_mpi.nn.context import Context
from hpdl_mpi.nn.flat import images_in
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

    counters = ("num_batches_tracked",)

    def __init__(self, *, eps: float = 1e-5, momentum: float = 0.1, relu: bool = False) -> None:
        if not 0 < eps < math.inf:
            raise self.refuse("eps out of range", found=eps, expected="a number above 0")
        if not 0 < momentum <= 1:
            raise self.refuse("momentum out of range", found=momentum, expected="above 0, at most 1")
        self.eps, self.momentum, self.relu = eps, momentum, relu

    def build(self, input_shape: Shape) -> None:
        if not input_shape or min(input_shape) < 1:
            raise self.refuse("needs channels", found=f"samples of shape {input_shape}", expected="at least one")
        channels, images = (input_shape[-1],), images_in(input_shape)
        self.declare("weight", channels, Constant(1.0), decay=False, images=images)
        self.declare("bias", channels, Constant(0.0), decay=False, images=images)
        self.declare_statistic("running_mean", channels, Constant(0.0), images=images)
        self.declare_statistic("running_var", channels, Constant(1.0), images=images)

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        rows = x.reshape(-1, x.shape[-1])
        factors = ctx.take((4, rows.shape[1]), x.dtype)
        mean, variance = self.statistics["running_mean"], self.statistics["running_var"]
        moments = ctx.take((2, rows.shape[1]), np.float64)
        if ctx.training and len(rows):
            partial = ctx.take(kernel.partial_shape(*rows.shape), rows.dtype)
            kernel.moments(rows, partial, moments)
            ctx.release(partial)
            if not ctx.batch.recomputing:
                kernel.follow(moments, len(rows), self.momentum, mean, variance)
            mean, variance = moments
        kernel.make_factors(mean, variance, self.eps, self.params["weight"], self.params["bias"], factors)
        ctx.release(moments)
        y = ctx.take(x.shape, x.dtype)
        kernel.normalize(rows, factors[2], factors[3], self.relu, y.reshape(rows.shape))
        ctx.save(x=x, factors=factors)
        ctx.release(factors)
        return y

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray | None:
        x, factors = ctx.saved["x"], ctx.saved["factors"]
        rows, gradients = (array.reshape(-1, array.shape[-1]) for array in (x, dy))
        sums = ctx.take((2, rows.shape[1]), np.float64)
        partial = ctx.take(kernel.partial_shape(*rows.shape), rows.dtype)
        kernel.gradient_sums(rows, gradients, factors, self.relu, partial, sums)
        ctx.release(partial)
        dx = None
        if ctx.needs_dx:
            dx = ctx.take(x.shape, x.dtype)
            means = ctx.take((3, rows.shape[1]), rows.dtype)
            kernel.make_gradient_factors(factors, sums, len(rows), means)
            kernel.backward_input(rows, gradients, factors[2], factors[3], self.relu, means, dx.reshape(rows.shape))
            ctx.release(means)
        ctx.save(sums=sums)
        ctx.release(sums)
        ctx.drop("x", "factors")
        return dx

    def backward_weight(self, ctx: Context) -> None:
        kernel.add_gradients(ctx.saved["sums"], self.grads["bias"], self.grads["weight"])
        ctx.drop("sums")
