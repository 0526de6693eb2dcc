"""The ways to compute a convolution, and which one suits a layer.

Shapes are as in `kernels.conv2d`: x (n, h, w, c), weight (k, kh, kw, c), y (n, ho, wo, k).
"""

from __future__ import annotations

import abc
import math

import numpy as np

from hpdl_mpi.kernels import conv2d, winograd
from hpdl_mpi.kernels.elementwise import add_row_sums
from hpdl_mpi.nn.context import Context
from hpdl_mpi.nn.window import Pair

_LEAST_CHANNELS = 8
"""On both sides, for Winograd's method: its transforms work on vectors of channels."""

_WORTHWHILE = 0.6
"""Products that Winograd's method may take, of those of the definition, to be worth its transforms."""


class Method(abc.ABC):
    """A way to compute convolutions with one stride and padding; scratch comes from the context's pool.

    Parameters
    ----------
    stride, padding : (int, int)
        Vertical and horizontal.
    """

    def __init__(self, stride: Pair, padding: Pair) -> None:
        self.stride, self.padding = stride, padding

    @abc.abstractmethod
    def forward(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, y: np.ndarray, ctx: Context) -> None:
        """Write y; the bias has shape (k,) or (0,)."""

    @abc.abstractmethod
    def backward_input(self, dy: np.ndarray, weight: np.ndarray, dx: np.ndarray, ctx: Context) -> None:
        """Write dx."""

    @abc.abstractmethod
    def backward_weight(self, x: np.ndarray, dy: np.ndarray, dweight: np.ndarray, ctx: Context) -> None:
        """Add to dweight."""


class Unfolded(Method):
    """Blocks of the image are unfolded into matrices, and these multiplied: any shape, sums in order."""

    def forward(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, y: np.ndarray, ctx: Context) -> None:
        columns = self._columns(y, weight, ctx)
        conv2d.forward(x, weight, bias, self.stride, self.padding, columns, y)
        ctx.release(columns)

    def backward_input(self, dy: np.ndarray, weight: np.ndarray, dx: np.ndarray, ctx: Context) -> None:
        columns = self._columns(dy, weight, ctx)
        conv2d.backward_input(dy, weight, self.stride, self.padding, columns, dx)
        ctx.release(columns)

    def backward_weight(self, x: np.ndarray, dy: np.ndarray, dweight: np.ndarray, ctx: Context) -> None:
        columns = self._columns(dy, dweight, ctx)
        parts = _Parts(dweight, len(columns), ctx)
        conv2d.backward_weight(x, dy, self.stride, self.padding, columns, parts.arrays)
        parts.add_up()
        ctx.release(columns)

    def _columns(self, y: np.ndarray, weight: np.ndarray, ctx: Context) -> np.ndarray:
        return ctx.take(conv2d.scratch_shape(math.prod(y.shape[:3]), math.prod(weight.shape[1:]), y.itemsize), y.dtype)


class Winograd(Method):
    """See `kernels.winograd`: kernels of 3 x 3 with stride 1."""

    def forward(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, y: np.ndarray, ctx: Context) -> None:
        panels = ctx.take((winograd.panels_size(x.shape[3], y.shape[3], y.dtype),), y.dtype)
        transposed = ctx.take(winograd.transposed_shape(weight.shape, y.dtype), y.dtype)
        scratch = ctx.take(winograd.scratch_shape(weight.shape, y.dtype), y.dtype)
        winograd.forward(x, weight, bias, self.padding, panels, transposed, scratch, y)
        for array in (panels, transposed, scratch):
            ctx.release(array)

    def backward_input(self, dy: np.ndarray, weight: np.ndarray, dx: np.ndarray, ctx: Context) -> None:
        panels = ctx.take((winograd.panels_size(dy.shape[3], dx.shape[3], dy.dtype),), dy.dtype)
        scratch = ctx.take(winograd.scratch_shape(weight.shape, dy.dtype), dy.dtype)
        winograd.backward_input(dy, weight, self.padding, panels, scratch, dx)
        ctx.release(panels)
        ctx.release(scratch)

    def backward_weight(self, x: np.ndarray, dy: np.ndarray, dweight: np.ndarray, ctx: Context) -> None:
        scratch = ctx.take(winograd.scratch_shape(dweight.shape, dy.dtype), dy.dtype)
        points = ctx.take((len(scratch), winograd.points_size(dweight.shape)), dy.dtype)
        parts = _Parts(dweight, len(scratch), ctx)
        winograd.backward_weight(x, dy, self.padding, points, scratch, parts.arrays)
        parts.add_up()
        ctx.release(points)
        ctx.release(scratch)


class _Parts:
    """Each thread's part of a gradient: the gradient itself, if there is one thread.

    Attributes
    ----------
    arrays : array, shape (threads, *gradient.shape)
    """

    def __init__(self, gradient: np.ndarray, threads: int, ctx: Context) -> None:
        self._gradient, self._ctx = gradient, ctx
        if threads == 1:
            self.arrays = gradient[None]
        else:
            self.arrays = ctx.take((threads, *gradient.shape), gradient.dtype)
            self.arrays.fill(0)

    def add_up(self) -> None:
        """Add all parts to the gradient, and let go of them."""
        if len(self.arrays) > 1:
            add_row_sums(self.arrays.reshape(len(self.arrays), -1), self._gradient.reshape(-1))
            self._ctx.release(self.arrays)


def choose(weight_shape: tuple[int, ...], output: Pair, stride: Pair, padding: Pair, *, exact: bool) -> Method:
    """Return the fastest method for a layer.

    Parameters
    ----------
    weight_shape : (int, int, int, int)
    output : (int, int)
        Height and width.
    stride, padding : (int, int)
    exact : bool
        Whether sums must be in order, as by definition.
    """
    out_channels, height, width, in_channels = weight_shape
    fits = (height, width) == (3, 3) and stride == (1, 1) and min(in_channels, out_channels) >= _LEAST_CHANNELS
    if fits and not exact and winograd.cost(output) <= _WORTHWHILE:
        return Winograd(stride, padding)
    return Unfolded(stride, padding)
