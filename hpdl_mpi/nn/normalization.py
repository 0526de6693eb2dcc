"""Normalisation layers."""

from __future__ import annotations

import abc
import math

import numpy as np

from hpdl_mpi.base.errors import is_number
from hpdl_mpi.kernels import normalization as kernel
from hpdl_mpi.kernels import rms_norm, sample_norm
from hpdl_mpi.kernels.elementwise import add_row_sums
from hpdl_mpi.kernels.gemm import as_matrix
from hpdl_mpi.kernels.recording import replayed
from hpdl_mpi.nn.activations import Clipping, clipping_limits
from hpdl_mpi.nn.context import Context, Ranks
from hpdl_mpi.nn.flat import images_in
from hpdl_mpi.nn.init import Constant
from hpdl_mpi.nn.layer import Layer, Shape, require_count


def checked_eps(layer: Layer, eps: float) -> float:
    """Return what a layer adds before it divides by a root; raise its error if that is no number above 0."""
    if not (is_number(eps) and 0 < eps < math.inf):
        raise layer.refuse("eps out of range", found=repr(eps), expected="a number above 0")
    return eps


class _Norm(Layer):
    """Has a weight and a bias for each channel, the last dimension; backward leaves parts of their gradients."""

    def __init__(self, eps: float) -> None:
        self.eps = checked_eps(self, eps)

    def build(self, input_shape: Shape) -> None:
        if not input_shape or min(input_shape) < 1:
            raise self.refuse("needs channels", found=f"samples of shape {input_shape}", expected="at least one")
        channels, images = input_shape[-1:], images_in(input_shape)
        self.declare("weight", channels, Constant(1.0), decay=False, images=images)
        self.declare("bias", channels, Constant(0.0), decay=False, images=images)

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def backward_weight(self, ctx: Context) -> None:
        replayed(kernel.add_gradients, ctx.saved["parts"], self.grads["bias"], self.grads["weight"])
        ctx.drop("parts")


class BatchNorm2d(_Norm):
    """Normalises each channel over a micro-batch, then scales and shifts it (Ioffe and Szegedy, 2015).

    Samples are of any shape, channels last. While training, means and variances are those of the micro-batch, or of
    those of several ranks together (``parallel.sync_batch_norm``), and running ones follow them; evaluation takes the
    running ones. Of a single value for each channel (one sample of one pixel) nothing is left but the bias, and nothing
    is tracked.

    Parameters
    ----------
    eps : float
        Added to variances.
    momentum : float
        How much of the running values a micro-batch replaces.
    activation : {None, "relu", "relu6"}
        Also do what a `ReLU` or `ReLU6` behind it would: one pass over memory less.
    """

    counters = ("num_batches_tracked",)

    def __init__(self, *, eps: float = 1e-5, momentum: float = 0.1, activation: Clipping | None = None) -> None:
        super().__init__(eps)
        if not (is_number(momentum) and 0 < momentum <= 1):
            raise self.refuse("momentum out of range", found=repr(momentum), expected="above 0, at most 1")
        self.momentum = momentum
        self._clips = activation is not None
        self._limits = clipping_limits(self, activation)

    @property
    def adds(self) -> bool:
        return not self._clips

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        channels, images = input_shape[-1:], images_in(input_shape)
        self.declare_statistic("running_mean", channels, Constant(0.0), images=images)
        self.declare_statistic("running_var", channels, Constant(1.0), images=images, least=0.0)

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        rows = x.reshape(-1, x.shape[-1])
        running = self.statistics["running_mean"], self.statistics["running_var"]
        affine = self.eps, self.params["weight"], self.params["bias"]
        addend, limits = ctx.addend or (x[:0], self._limits)
        to = addend.reshape(-1, x.shape[-1]), limits
        factors = ctx.take((4, rows.shape[1]), x.dtype)
        y = ctx.take(x.shape, x.dtype)
        count: float = len(rows)
        if ctx.training and ctx.batch.ranks is not None:
            moments, count = self._joint_moments(rows, ctx.batch.ranks, ctx)
            if not ctx.batch.recomputing and count > 1:
                kernel.follow(moments, count, self.momentum, *running)
            kernel.make_factors(*moments, *affine, factors)
            kernel.normalize(rows, factors, *to, y.reshape(rows.shape))
            ctx.release(moments)
        elif ctx.training and count:
            counts = not ctx.batch.recomputing and count > 1  # one value has no variance
            partial = ctx.take(kernel.partial_shape(*rows.shape), rows.dtype)
            moments = ctx.take((2, rows.shape[1]), np.float64)
            momentum = self.momentum if counts else 0.0
            kernel.normalize_by_moments(
                rows, *running, momentum, *affine, *to, partial, moments, factors, y.reshape(rows.shape)
            )
            ctx.release(moments)
            ctx.release(partial)
        else:
            kernel.make_factors(*running, *affine, factors)
            kernel.normalize(rows, factors, *to, y.reshape(rows.shape))
        ctx.save(x=x, factors=factors, count=count)
        ctx.release(factors)
        return y

    def _joint_moments(self, rows: np.ndarray, ranks: Ranks, ctx: Context) -> tuple[np.ndarray, float]:
        """Return mean and variance of all rows that the ranks have, and how many these are. Collective."""
        channels = rows.shape[1]
        own, parts = ctx.take((1 + 2 * channels,), np.float64), ctx.take((ranks.size, 1 + 2 * channels), np.float64)
        own[0] = len(rows)
        if len(rows):
            partial = ctx.take(kernel.partial_shape(*rows.shape), rows.dtype)
            kernel.find_moments(rows, partial, own[1:].reshape(2, channels))
            ctx.release(partial)
        else:
            own[1:] = 0.0
        ranks.allgather(own, parts)
        moments = ctx.take((2, channels), np.float64)
        count = kernel.join_moments(parts, moments)
        ctx.release(own)
        ctx.release(parts)
        return moments, count

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray | None:
        x, factors = ctx.saved["x"], ctx.saved["factors"]
        rows, gradients = (array.reshape(-1, array.shape[-1]) for array in (x, dy))
        sums = ctx.take((1, 2, rows.shape[1]), np.float64)
        partial = ctx.take(kernel.partial_shape(*rows.shape), rows.dtype)
        dx = ctx.take(x.shape, x.dtype) if ctx.needs_dx else None
        wanted = rows[:0] if dx is None else dx.reshape(rows.shape)
        if ctx.batch.ranks is None:
            kernel.backward(rows, gradients, factors, self._limits, partial, sums[0], wanted)
        else:
            self._backward_jointly(rows, gradients, partial, sums, None if dx is None else wanted, ctx)
        ctx.release(partial)
        ctx.save(parts=sums)
        ctx.release(sums)
        ctx.drop("x", "factors", "count")
        return dx

    def _backward_jointly(
        self,
        rows: np.ndarray,
        gradients: np.ndarray,
        partial: np.ndarray,
        sums: np.ndarray,
        dx: np.ndarray | None,
        ctx: Context,
    ) -> None:
        """Write this rank's sums, and dx if it is wanted, which the sums of all ranks make. Collective."""
        factors, ranks = ctx.saved["factors"], ctx.batch.ranks
        assert ranks is not None, "there are ranks to do it with"
        if len(rows):
            kernel.sum_gradients(rows, gradients, factors, self._limits, partial, sums[0])
        else:
            sums.fill(0.0)
        if dx is None:
            return
        parts, joint = ctx.take((ranks.size, *sums.shape[1:]), np.float64), ctx.take(sums.shape[1:], np.float64)
        means = ctx.take((3, rows.shape[1]), rows.dtype)
        ranks.allgather(sums[0], parts)
        np.sum(parts, axis=0, out=joint)
        kernel.spread_gradients(rows, gradients, factors, self._limits, joint, ctx.saved["count"], means, dx)
        for array in (means, joint, parts):
            ctx.release(array)


class _SampleNorm(_Norm):
    """Normalises parts of a sample by their own mean and deviation, which are kept."""

    @abc.abstractmethod
    def _normalize(self, x: np.ndarray, y: np.ndarray, ctx: Context) -> np.ndarray:
        """Write y; return means and inverse deviations."""

    @abc.abstractmethod
    def _differentiate(
        self, x: np.ndarray, dy: np.ndarray, moments: np.ndarray, dx: np.ndarray, ctx: Context
    ) -> np.ndarray:
        """Write dx; return the parts of the gradients of bias and weight."""

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        y = ctx.take(x.shape, x.dtype)
        moments = self._normalize(x, y, ctx)
        ctx.save(x=x, moments=moments)
        ctx.release(moments)
        return y

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray | None:
        dx = ctx.take(dy.shape, dy.dtype)
        parts = self._differentiate(ctx.saved["x"], dy, ctx.saved["moments"], dx, ctx)
        ctx.drop("x", "moments")
        ctx.save(parts=parts)
        ctx.release(parts)
        if ctx.needs_dx:
            return dx
        ctx.release(dx)
        return None


class LayerNorm(_SampleNorm):
    """Normalises each row of the last dimension, then scales and shifts it (Ba, Kiros and Hinton, 2016).

    Parameters
    ----------
    eps : float
        Added to variances.
    """

    replayable = True

    def __init__(self, *, eps: float = 1e-5) -> None:
        super().__init__(eps)

    def _normalize(self, x: np.ndarray, y: np.ndarray, ctx: Context) -> np.ndarray:
        rows, results = (array.reshape(-1, x.shape[-1]) for array in (x, y))
        moments = ctx.take((len(rows), 2), x.dtype)
        sample_norm.normalize_rows(rows, self.params["weight"], self.params["bias"], self.eps, moments, results)
        return moments

    def _differentiate(
        self, x: np.ndarray, dy: np.ndarray, moments: np.ndarray, dx: np.ndarray, ctx: Context
    ) -> np.ndarray:
        rows, gradients, results = (array.reshape(-1, x.shape[-1]) for array in (x, dy, dx))
        parts = ctx.take((kernel.num_blocks(len(rows)), 2, x.shape[-1]), x.dtype)
        sample_norm.rows_backward(rows, gradients, self.params["weight"], moments, parts, results)
        return parts


class RMSNorm(Layer):
    """Divides each row of the last dimension by its root mean square, then scales it (Zhang and Sennrich, 2019).

    Parameters
    ----------
    eps : float
        Added to mean squares.
    """

    replayable = True

    def __init__(self, *, eps: float = 1e-6) -> None:
        self.eps = checked_eps(self, eps)

    def build(self, input_shape: Shape) -> None:
        if not input_shape or min(input_shape) < 1:
            raise self.refuse("needs features", found=f"samples of shape {input_shape}", expected="at least one")
        self.declare("weight", input_shape[-1:], Constant(1.0), decay=False, images=images_in(input_shape))

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        y = ctx.take(x.shape, x.dtype)
        rows, results = as_matrix(x), as_matrix(y)
        inverses = ctx.take((len(rows),), x.dtype)
        rms_norm.scale_rows(rows, self.params["weight"], self.eps, inverses, results)
        ctx.save(x=x, inverses=inverses)
        ctx.release(inverses)
        return y

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray | None:
        dx = ctx.take(dy.shape, dy.dtype)
        rows = as_matrix(ctx.saved["x"])
        parts = ctx.take((kernel.num_blocks(len(rows)), rows.shape[1]), dy.dtype)
        weight, inverses = self.params["weight"], ctx.saved["inverses"]
        rms_norm.scale_backward(rows, as_matrix(dy), weight, inverses, parts, as_matrix(dx))
        ctx.drop("x", "inverses")
        ctx.save(parts=parts)
        ctx.release(parts)
        if ctx.needs_dx:
            return dx
        ctx.release(dx)
        return None

    def backward_weight(self, ctx: Context) -> None:
        add_row_sums(ctx.saved["parts"], self.grads["weight"])
        ctx.drop("parts")


class GroupNorm(_SampleNorm):
    """Normalises each group of channels of each sample, then scales and shifts the channels (Wu and He, 2018).

    Samples are of any shape, channels last. A group for each channel makes instance normalisation.

    Parameters
    ----------
    num_groups : int
        Divides the number of channels.
    eps : float
        Added to variances.
    """

    replayable = True

    def __init__(self, num_groups: int, *, eps: float = 1e-5) -> None:
        super().__init__(eps)
        self.num_groups = require_count(self, num_groups, "groups")

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        if input_shape[-1] % self.num_groups:
            raise self.refuse(
                "channels do not make groups of one size",
                found=f"{input_shape[-1]} channels in {self.num_groups} groups",
                expected="a number of groups that divides them",
            )
        # The features of flattened images stand in another order there, and so in other groups.
        self.portable = self.num_groups == 1 or not images_in(input_shape)

    def _normalize(self, x: np.ndarray, y: np.ndarray, ctx: Context) -> np.ndarray:
        moments = ctx.take((len(x), self.num_groups, 2), x.dtype)
        pixels, scratch = _pixels(x), self._scratch(x, ctx)
        weight, bias = self.params["weight"], self.params["bias"]
        sample_norm.normalize_groups(pixels, weight, bias, self.eps, *scratch, moments, _pixels(y))
        ctx.release(scratch)
        return moments

    def _differentiate(
        self, x: np.ndarray, dy: np.ndarray, moments: np.ndarray, dx: np.ndarray, ctx: Context
    ) -> np.ndarray:
        parts = ctx.take((len(x), 2, x.shape[-1]), x.dtype)
        pixels, scratch = _pixels(x), self._scratch(x, ctx)
        weight = self.params["weight"]
        sample_norm.groups_backward(pixels, _pixels(dy), weight, moments, *scratch, parts, _pixels(dx))
        ctx.release(scratch)
        return parts

    def _scratch(self, x: np.ndarray, ctx: Context) -> tuple[np.ndarray, np.ndarray]:
        """Return the arrays that `kernels.sample_norm` wants for its own use."""
        images, size, channels = _pixels(x).shape
        partial = ctx.take((images, kernel.num_blocks(size), 3, channels), x.dtype)
        return partial, ctx.take((images, 3, channels), x.dtype)


def _pixels(array: np.ndarray) -> np.ndarray:
    """Return samples as matrices: a row for each pixel."""
    return array.reshape(len(array), math.prod(array.shape[1:-1]), array.shape[-1])
