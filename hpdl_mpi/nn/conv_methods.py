"""The ways to compute a convolution; `conv_rules` says which one a layer takes.

Arrays are x (n, h, w, c), weight (k, kh, kw, c / groups) and y (n, ho, wo, k).
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hpdl_mpi.kernels import conv2d, depthwise, winograd, winograd_gradient
from hpdl_mpi.kernels.elementwise import add_row_sums
from hpdl_mpi.kernels.gemm import as_matrix, matmul
from hpdl_mpi.kernels.jit import thread_count
from hpdl_mpi.kernels.pixels import gather_pixels, spread_pixels
from hpdl_mpi.kernels.schemes import Scheme
from hpdl_mpi.nn.context import Context
from hpdl_mpi.nn.window import Pair


@dataclass(frozen=True)
class ConvShape:
    """What a method is chosen by.

    Attributes
    ----------
    weight : (int, int, int, int)
        Shape of the weight.
    output : (int, int)
        Height and width.
    stride, padding : (int, int)
        Vertical and horizontal.
    groups : int
        Output channels of a group see its input channels alone.
    exact : bool
        Whether sums must be those of the definition.
    """

    weight: tuple[int, int, int, int]
    output: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    groups: int = 1
    exact: bool = False


class Method(abc.ABC):
    """A way to compute convolutions of a shape; scratch comes from the context's pool."""

    name: ClassVar[str]

    def __init__(self, shape: ConvShape) -> None:
        self.shape = shape

    @classmethod
    @abc.abstractmethod
    def can(cls, shape: ConvShape) -> bool:
        """Return whether the method is for this shape."""

    @abc.abstractmethod
    def forward(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, y: np.ndarray, ctx: Context) -> None:
        """Write y; the bias has shape (k,) or (0,)."""

    @abc.abstractmethod
    def backward_input(self, dy: np.ndarray, weight: np.ndarray, dx: np.ndarray, ctx: Context) -> None:
        """Write dx."""

    @abc.abstractmethod
    def backward_weight(self, x: np.ndarray, dy: np.ndarray, dweight: np.ndarray, ctx: Context) -> None:
        """Add to dweight."""


class Pointwise(Method):
    """Kernels of one pixel: a product of matrices, of which one is the pixels that the stride meets."""

    name = "pointwise"

    @classmethod
    def can(cls, shape: ConvShape) -> bool:
        return shape.weight[1:3] == (1, 1) and shape.padding == (0, 0) and shape.groups == 1

    def forward(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, y: np.ndarray, ctx: Context) -> None:
        met = self._met(x, ctx)
        matmul(as_matrix(met), as_matrix(weight), as_matrix(y), trans_b=True, bias=bias)
        ctx.release(met)

    def backward_input(self, dy: np.ndarray, weight: np.ndarray, dx: np.ndarray, ctx: Context) -> None:
        if self._meets_all:
            matmul(as_matrix(dy), as_matrix(weight), as_matrix(dx))
            return
        met = ctx.take((*dy.shape[:3], dx.shape[3]), dx.dtype)
        matmul(as_matrix(dy), as_matrix(weight), as_matrix(met))
        spread_pixels(met, self.shape.stride, dx)
        ctx.release(met)

    def backward_weight(self, x: np.ndarray, dy: np.ndarray, dweight: np.ndarray, ctx: Context) -> None:
        met = self._met(x, ctx)
        matmul(as_matrix(dy), as_matrix(met), as_matrix(dweight), trans_a=True, accumulate=True)
        ctx.release(met)

    @property
    def _meets_all(self) -> bool:
        return self.shape.stride == (1, 1)

    def _met(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        """Return x itself if its pixels are all met, else a copy of those that are; the caller releases it."""
        if self._meets_all:
            ctx.retain(x)
            return x
        met = ctx.take((len(x), *self.shape.output, x.shape[3]), x.dtype)
        gather_pixels(x, self.shape.stride, met)
        return met


class Depthwise(Method):
    """Each channel has a kernel of its own, see `kernels.depthwise`."""

    name = "depthwise"

    @classmethod
    def can(cls, shape: ConvShape) -> bool:
        return shape.groups == shape.weight[0] > 1 and shape.weight[3] == 1

    def forward(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, y: np.ndarray, ctx: Context) -> None:
        taps = self._taps(weight, ctx)
        depthwise.forward(x, taps, bias, self.shape.stride, self.shape.padding, y)
        ctx.release(taps)

    def backward_input(self, dy: np.ndarray, weight: np.ndarray, dx: np.ndarray, ctx: Context) -> None:
        taps = self._taps(weight, ctx)
        depthwise.backward_input(dy, taps, self.shape.stride, self.shape.padding, dx)
        ctx.release(taps)

    def backward_weight(self, x: np.ndarray, dy: np.ndarray, dweight: np.ndarray, ctx: Context) -> None:
        channels, *kernel_size, _ = dweight.shape
        parts = ctx.take((thread_count(), *kernel_size, channels), dy.dtype)
        parts.fill(0)
        depthwise.backward_weight(x, dy, self.shape.stride, self.shape.padding, parts)
        depthwise.add_taps(parts, dweight)
        ctx.release(parts)

    def _taps(self, weight: np.ndarray, ctx: Context) -> np.ndarray:
        channels, *kernel_size, _ = weight.shape
        taps = ctx.take((*kernel_size, channels), weight.dtype)
        depthwise.make_taps(weight, taps)
        return taps


class Winograd(Method):
    """See `kernels.winograd`: kernels of 3 x 3 or 5 x 5."""

    name = "winograd"

    def __init__(self, shape: ConvShape) -> None:
        super().__init__(shape)
        scheme = self._best(shape)
        assert scheme is not None, "there is one, if the method can"
        self._scheme = scheme

    @staticmethod
    def _best(shape: ConvShape) -> Scheme | None:
        return winograd.best_scheme(shape.weight[1:3], shape.stride, shape.padding, shape.output)

    @classmethod
    def can(cls, shape: ConvShape) -> bool:
        return shape.groups == 1 and not shape.exact and cls._best(shape) is not None

    @property
    def effort(self) -> float:
        """Products that it takes, over those of the definition."""
        by_definition = math.prod(self.shape.output) * math.prod(self.shape.weight[1:3])
        return self._scheme.products(*self.shape.output) / by_definition

    def forward(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, y: np.ndarray, ctx: Context) -> None:
        scratch = ctx.take((winograd.scratch_size(self._scheme, x.shape[3], y.shape, y.dtype),), y.dtype)
        winograd.forward(self._scheme, x, weight, bias, self.shape.padding, scratch, y)
        ctx.release(scratch)

    def backward_input(self, dy: np.ndarray, weight: np.ndarray, dx: np.ndarray, ctx: Context) -> None:
        back = winograd.back_of(self._scheme)
        scratch = ctx.take((winograd.scratch_size(back, dy.shape[3], dx.shape, dx.dtype),), dx.dtype)
        winograd.backward_input(self._scheme, dy, weight, self.shape.padding, scratch, dx)
        ctx.release(scratch)

    def backward_weight(self, x: np.ndarray, dy: np.ndarray, dweight: np.ndarray, ctx: Context) -> None:
        sizes = self._scheme, x.shape[3], dy.shape, dy.dtype
        scratch = ctx.take((winograd_gradient.scratch_size(*sizes),), dy.dtype)
        parts = _Parts(dweight, winograd_gradient.num_parts(*sizes), ctx)
        winograd_gradient.backward_weight(self._scheme, x, dy, self.shape.padding, scratch, parts.arrays)
        parts.add_up()
        ctx.release(scratch)


class Unfolded(Method):
    """Blocks of the image are unfolded into matrices, and these multiplied: any shape, sums in order."""

    name = "unfolded"

    @classmethod
    def can(cls, shape: ConvShape) -> bool:
        return shape.groups == 1

    def forward(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, y: np.ndarray, ctx: Context) -> None:
        columns = self._columns(y, weight, ctx)
        conv2d.forward(x, weight, bias, self.shape.stride, self.shape.padding, columns, y)
        ctx.release(columns)

    def backward_input(self, dy: np.ndarray, weight: np.ndarray, dx: np.ndarray, ctx: Context) -> None:
        columns = self._columns(dy, weight, ctx)
        conv2d.backward_input(dy, weight, self.shape.stride, self.shape.padding, columns, dx)
        ctx.release(columns)

    def backward_weight(self, x: np.ndarray, dy: np.ndarray, dweight: np.ndarray, ctx: Context) -> None:
        columns = self._columns(dy, dweight, ctx)
        parts = _Parts(dweight, len(columns), ctx)
        conv2d.backward_weight(x, dy, self.shape.stride, self.shape.padding, columns, parts.arrays)
        parts.add_up()
        ctx.release(columns)

    def _columns(self, y: np.ndarray, weight: np.ndarray, ctx: Context) -> np.ndarray:
        return ctx.take(conv2d.scratch_shape(math.prod(y.shape[:3]), math.prod(weight.shape[1:]), y.itemsize), y.dtype)


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
