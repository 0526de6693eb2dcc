"""Pooling of NHWC images."""

from __future__ import annotations

import abc
import math

import numpy as np

from hpdl_mpi.kernels import pool as kernel
from hpdl_mpi.nn.context import Context
from hpdl_mpi.nn.layer import Layer, Shape
from hpdl_mpi.nn.window import Pair, pair, require_image, window_output


class _Pool2d(Layer):
    """A window of `kernel_size` (vertical, horizontal) moves by `stride`, by default its own size."""

    def __init__(self, kernel_size: int | Pair, *, stride: int | Pair | None = None, padding: int | Pair = 0) -> None:
        self.kernel_size, self.padding = pair(self, kernel_size, "kernel_size"), pair(self, padding, "padding")
        self.stride = pair(self, stride, "stride") if stride is not None else self.kernel_size

    def build(self, input_shape: Shape) -> None:
        window_output(self, input_shape)
        if any(2 * margin > size for margin, size in zip(self.padding, self.kernel_size, strict=True)):
            raise self.refuse(
                "a window could lie in the padding alone", found=self.padding, expected="at most half the kernel size"
            )

    def output_shape(self, input_shape: Shape) -> Shape:
        return (*window_output(self, input_shape), input_shape[2])

    @abc.abstractmethod
    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray: ...


class MaxPool2d(_Pool2d):
    """The maximum of each window; the gradient goes to the first of equal maxima."""

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        if self.kernel_size[0] * self.kernel_size[1] > kernel.MAX_WINDOW:
            raise self.refuse(
                "the window is too large", found=self.kernel_size, expected=f"at most {kernel.MAX_WINDOW} positions"
            )

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        y = ctx.take((len(x), *self.output_shape(x.shape[1:])), x.dtype)
        where = ctx.take(y.shape, np.uint8)
        kernel.max_forward(x, self.kernel_size, self.stride, self.padding, y, where)
        ctx.save(where=where, shape=x.shape)
        ctx.release(where)
        return y

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray:
        dx = ctx.take(ctx.saved["shape"], dy.dtype)
        kernel.max_backward(dy, ctx.saved["where"], self.kernel_size, self.stride, self.padding, dx)
        ctx.drop("where", "shape")
        return dx


class AvgPool2d(_Pool2d):
    """The mean of each window, padding counted as zeros."""

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        y = ctx.take((len(x), *self.output_shape(x.shape[1:])), x.dtype)
        kernel.average_forward(x, self.kernel_size, self.stride, self.padding, y)
        ctx.save(shape=x.shape)
        return y

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray:
        dx = ctx.take(ctx.saved["shape"], dy.dtype)
        kernel.average_backward(dy, self.kernel_size, self.stride, self.padding, dx)
        ctx.drop("shape")
        return dx


class AdaptiveAvgPool2d(Layer):
    """The mean of each of ho x wo bins, which cover the image: (h, w, c) to (ho, wo, c), whatever h and w are.

    Bin i begins at pixel floor(i h / ho) and ends before ceil((i + 1) h / ho), as in PyTorch.

    Parameters
    ----------
    output_size : int or (int, int)
        Vertical and horizontal, or one number for both. Pixels are repeated where it exceeds the image.
    """

    def __init__(self, output_size: int | Pair) -> None:
        self.output_size = pair(self, output_size, "output_size")
        if min(self.output_size) < 1:
            raise self.refuse("has no output", found=f"output size {self.output_size}", expected="at least 1 x 1")

    def build(self, input_shape: Shape) -> None:
        require_image(self, input_shape)

    def output_shape(self, input_shape: Shape) -> Shape:
        return (*self.output_size, input_shape[2])

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        ctx.save(shape=x.shape)
        if x.shape[1:3] == self.output_size:
            ctx.retain(x)
            return x
        y = ctx.take((len(x), *self.output_shape(x.shape[1:])), x.dtype)
        kernel.adaptive_forward(x, y)
        return y

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray:
        shape = ctx.saved["shape"]
        ctx.drop("shape")
        if dy.shape == shape:
            ctx.retain(dy)
            return dy
        dx = ctx.take(shape, dy.dtype)
        kernel.adaptive_backward(dy, dx)
        return dx


class GlobalAvgPool2d(Layer):
    """The mean of each channel over the whole image: (h, w, c) to (c,), whatever h and w are."""

    def build(self, input_shape: Shape) -> None:
        require_image(self, input_shape)

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape[2:]

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        y = ctx.take((len(x), x.shape[3]), x.dtype)
        kernel.global_average_forward(x.reshape(len(x), math.prod(x.shape[1:3]), x.shape[3]), y)
        ctx.save(shape=x.shape)
        return y

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray:
        shape = ctx.saved["shape"]
        dx = ctx.take(shape, dy.dtype)
        kernel.global_average_backward(dy, dx.reshape(shape[0], math.prod(shape[1:3]), shape[3]))
        ctx.drop("shape")
        return dx
