"""Two-dimensional convolution as blocks of im2col and a matrix product (Chellapilla, Puri and Simard, 2006).

Images are NHWC: x (n, h, w, c), y (n, ho, wo, k); weights are (k, kh, kw, c). The unfolded matrix has a row per
output pixel and a column per weight of one output channel. It never exists whole: each thread unfolds `block_rows` of
it into its slice of `columns`, which stays in the cache, and multiplies that.
"""

from __future__ import annotations

from numba import prange

from hpdl_mpi.kernels.gemm import gemm
from hpdl_mpi.kernels.jit import kernel, parallel_kernel, thread_count

_BLOCK_BYTES = 256 * 1024
"""A block of the unfolded matrix: a quarter of a 1 MiB second-level cache, beside weights and output."""


def output_size(size: int, kernel_size: int, stride: int, padding: int) -> int:
    """Return the length of the output along one dimension, which is < 1 where the kernel does not fit."""
    return (size + 2 * padding - kernel_size) // stride + 1


def scratch_shape(num_pixels: int, row_length: int, itemsize: int) -> tuple[int, int, int]:
    """Return the shape of `columns`: (threads, block_rows, row_length)."""
    rows = max(16, _BLOCK_BYTES // (row_length * itemsize))
    return thread_count(), max(1, min(rows, num_pixels)), row_length


@kernel
def _unfold(x, kernel_size, stride, padding, output_shape, first, last, columns):
    """columns[p - first] = the patch of x under output pixel p, for p in first..last; zero outside the image."""
    _, height, width, channels = x.shape
    kh, kw = kernel_size
    ho, wo = output_shape
    flat = x.reshape(-1)
    run = kw * channels
    for p in range(first, last):
        image, pixel = divmod(p, ho * wo)
        top = (pixel // wo) * stride[0] - padding[0]
        left = (pixel % wo) * stride[1] - padding[1]
        start = max(0, -left) * channels
        stop = max(start, min(kw, width - left) * channels)
        row = columns[p - first]
        for r in range(kh):
            base = r * run
            if top + r < 0 or top + r >= height:
                for t in range(run):
                    row[base + t] = 0
                continue
            source = ((image * height + top + r) * width + left) * channels
            for t in range(start):
                row[base + t] = 0
            for t in range(start, stop):
                row[base + t] = flat[source + t]
            for t in range(stop, run):
                row[base + t] = 0


@kernel
def _fold(columns, kernel_size, stride, padding, output_shape, first, last, dx):
    """The transpose of `_unfold`: add columns[p - first] to the patch of dx under output pixel p."""
    _, height, width, channels = dx.shape
    kh, kw = kernel_size
    ho, wo = output_shape
    flat = dx.reshape(-1)
    run = kw * channels
    for p in range(first, last):
        image, pixel = divmod(p, ho * wo)
        top = (pixel // wo) * stride[0] - padding[0]
        left = (pixel % wo) * stride[1] - padding[1]
        start = max(0, -left) * channels
        stop = min(kw, width - left) * channels
        row = columns[p - first]
        for r in range(max(0, -top), min(kh, height - top)):
            base = r * run
            target = ((image * height + top + r) * width + left) * channels
            for t in range(start, stop):
                flat[target + t] += row[base + t]


@parallel_kernel
def _forward(x, weight, bias, kernel_size, stride, padding, output_shape, columns, y):
    parts, block, _ = columns.shape
    pixels, channels = y.shape
    for part in prange(parts):
        stop = (part + 1) * pixels // parts
        for first in range(part * pixels // parts, stop, block):
            last = min(first + block, stop)
            _unfold(x, kernel_size, stride, padding, output_shape, first, last, columns[part])
            if bias.size:
                for p in range(first, last):
                    for k in range(channels):
                        y[p, k] = bias[k]
            gemm(columns[part, : last - first], weight, y[first:last], False, True, 1.0 if bias.size else 0.0)


@parallel_kernel
def _backward_input(dy, weight, kernel_size, stride, padding, output_shape, columns, dx):
    parts, block, _ = columns.shape
    images = dx.shape[0]
    pixels = output_shape[0] * output_shape[1]
    for part in prange(parts):
        start = part * images // parts
        stop = (part + 1) * images // parts
        flat = dx[start:stop].reshape(-1)
        for t in range(flat.size):
            flat[t] = 0
        for first in range(start * pixels, stop * pixels, block):
            last = min(first + block, stop * pixels)
            gemm(dy[first:last], weight, columns[part, : last - first], False, False, 0.0)
            _fold(columns[part], kernel_size, stride, padding, output_shape, first, last, dx)


@parallel_kernel
def _backward_weight(x, dy, kernel_size, stride, padding, output_shape, columns, dweights):
    parts, block, _ = columns.shape
    pixels = dy.shape[0]
    for part in prange(parts):
        stop = (part + 1) * pixels // parts
        for first in range(part * pixels // parts, stop, block):
            last = min(first + block, stop)
            _unfold(x, kernel_size, stride, padding, output_shape, first, last, columns[part])
            gemm(dy[first:last], columns[part, : last - first], dweights[part], True, False, 1.0)


def _matrix(images):
    """Return (n, h, w, c) or (k, kh, kw, c) as a matrix: a row per pixel, or per output channel."""
    return images.reshape(-1, images.shape[-1])


def forward(x, weight, bias, stride, padding, columns, y) -> None:
    """y = convolution of x with weight, plus bias; see the module for shapes.

    Parameters
    ----------
    bias : array, shape (k,) or (0,)
    stride, padding : (int, int)
        Vertical and horizontal.
    columns : array, shape `scratch_shape` (…)
        Scratch; its content is lost.
    y : array
        Written.
    """
    _forward(
        x, weight.reshape(len(weight), -1), bias, weight.shape[1:3], stride, padding, y.shape[1:3], columns, _matrix(y)
    )


def backward_input(dy, weight, stride, padding, columns, dx) -> None:
    """dx = gradient for the input of `forward`; written."""
    _backward_input(
        _matrix(dy), weight.reshape(len(weight), -1), weight.shape[1:3], stride, padding, dy.shape[1:3], columns, dx
    )


def backward_weight(x, dy, stride, padding, columns, dweights) -> None:
    """dweights[t] += thread t's part of the gradient for the weight; dweights (threads, k, kh, kw, c)."""
    parts, k, kh, kw, c = dweights.shape
    _backward_weight(
        x, _matrix(dy), (kh, kw), stride, padding, dy.shape[1:3], columns, dweights.reshape(parts, k, kh * kw * c)
    )
