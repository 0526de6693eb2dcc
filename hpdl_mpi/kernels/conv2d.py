"""Two-dimensional convolution as blocks of im2col and a matrix product (Chellapilla, Puri and Simard, 2006).

Images are NHWC: x (n, h, w, c), y (n, ho, wo, k); weights are (k, kh, kw, c). The unfolded matrix has a row per
output pixel and a column per weight of one output channel. It never exists whole: each thread unfolds `block_rows` of
it into its slice of `columns`, which stays in the cache, and multiplies that.
"""

from __future__ import annotations

from numba import prange

from hpdl_mpi.kernels.gemm import as_matrix, gemm, workspace
from hpdl_mpi.kernels.jit import inline, kernel, parallel_kernel, thread_count

_BLOCK_BYTES = 256 * 1024
"""A block of the unfolded matrix: a quarter of a 1 MiB second-level cache, beside weights and output."""


def output_size(size: int, kernel_size: int, stride: int, padding: int) -> int:
    """Return the length of the output along one dimension, which is < 1 where the kernel does not fit."""
    return (size + 2 * padding - kernel_size) // stride + 1


def scratch_shape(num_pixels: int, row_length: int, itemsize: int) -> tuple[int, int, int]:
    """Return the shape of `columns`: (threads, block_rows, row_length)."""
    rows = max(16, _BLOCK_BYTES // (row_length * itemsize))
    return thread_count(), max(1, min(rows, num_pixels)), row_length


@inline
def _patch(p, geometry, shape):
    """Return where the patch under output pixel p lies in x: image, top, left, and its columns inside the image."""
    _, kw, down, right, above, beside, ho, wo = geometry
    image, pixel = divmod(p, ho * wo)
    left = (pixel % wo) * right - beside
    start = max(0, -left)
    return image, (pixel // wo) * down - above, left, start, max(start, min(kw, shape[2] - left))


@kernel
def _unfold(x, geometry, first, last, columns):
    """columns[p - first] = the patch of x under output pixel p, for p in first..last; zero outside the image.

    `geometry` is kernel size, stride, padding and output shape, each vertical and horizontal: eight numbers in one
    tuple, since Numba hands no tuple of tuples to its threads. Inner loops run over slices from 0: an index that
    could be negative would keep them from becoming vector loops.
    """
    height, width, channels = x.shape[1:]
    kh, kw = geometry[:2]
    flat = x.reshape(-1)
    for p in range(first, last):
        image, top, left, start, stop = _patch(p, geometry, x.shape)
        for r in range(kh):
            row = columns[p - first, r * kw * channels : (r + 1) * kw * channels]
            if top + r < 0 or top + r >= height:
                row[:] = 0
                continue
            base = ((image * height + top + r) * width + left) * channels
            source = flat[base + start * channels : base + stop * channels]
            target = row[start * channels : stop * channels]
            row[: start * channels] = 0
            for t in range(target.size):
                target[t] = source[t]
            row[stop * channels :] = 0


@kernel
def _fold(columns, geometry, first, last, dx):
    """The transpose of `_unfold`: add columns[p - first] to the patch of dx under output pixel p."""
    height, width, channels = dx.shape[1:]
    kh, kw = geometry[:2]
    flat = dx.reshape(-1)
    for p in range(first, last):
        image, top, left, start, stop = _patch(p, geometry, dx.shape)
        for r in range(max(0, -top), min(kh, height - top)):
            base = ((image * height + top + r) * width + left) * channels
            target = flat[base + start * channels : base + stop * channels]
            source = columns[p - first, (r * kw + start) * channels : (r * kw + stop) * channels]
            for t in range(target.size):
                target[t] += source[t]


@parallel_kernel
def _forward(x, weight, bias, geometry, columns, workspaces, y):
    parts, block, _ = columns.shape
    pixels, channels = y.shape
    for part in prange(parts):
        stop = (part + 1) * pixels // parts
        for first in range(part * pixels // parts, stop, block):
            last = min(first + block, stop)
            _unfold(x, geometry, first, last, columns[part])
            if bias.size:
                for p in range(first, last):
                    for k in range(channels):
                        y[p, k] = bias[k]
            gemm(columns[part, : last - first], weight, y[first:last], False, True, bias.size > 0, workspaces[part])


@parallel_kernel
def _backward_input(dy, weight, geometry, columns, workspaces, dx):
    parts, block, _ = columns.shape
    images = dx.shape[0]
    pixels = geometry[6] * geometry[7]
    for part in prange(parts):
        start = part * images // parts
        stop = (part + 1) * images // parts
        flat = dx[start:stop].reshape(-1)
        for t in range(flat.size):
            flat[t] = 0
        for first in range(start * pixels, stop * pixels, block):
            last = min(first + block, stop * pixels)
            gemm(dy[first:last], weight, columns[part, : last - first], False, False, False, workspaces[part])
            _fold(columns[part], geometry, first, last, dx)


@parallel_kernel
def _backward_weight(x, dy, geometry, columns, workspaces, dweights):
    parts, block, _ = columns.shape
    pixels = dy.shape[0]
    for part in prange(parts):
        stop = (part + 1) * pixels // parts
        for first in range(part * pixels // parts, stop, block):
            last = min(first + block, stop)
            _unfold(x, geometry, first, last, columns[part])
            gemm(dy[first:last], columns[part, : last - first], dweights[part], True, False, True, workspaces[part])


def forward(x, weight, bias, stride, padding, columns, y) -> None:
    """y = convolution of x with weight, plus bias; see the module for shapes.

    Parameters
    ----------
    bias : array, shape (k,) or (0,)
    stride, padding : (int, int)
        Vertical and horizontal.
    columns : array, of `scratch_shape`
        Scratch; its content is lost.
    y : array
        Written.
    """
    geometry = (*weight.shape[1:3], *stride, *padding, *y.shape[1:3])
    _forward(x, weight.reshape(len(weight), -1), bias, geometry, columns, workspace(y.dtype), as_matrix(y))


def backward_input(dy, weight, stride, padding, columns, dx) -> None:
    """dx = gradient for the input of `forward`; written."""
    geometry = (*weight.shape[1:3], *stride, *padding, *dy.shape[1:3])
    _backward_input(as_matrix(dy), weight.reshape(len(weight), -1), geometry, columns, workspace(dx.dtype), dx)


def backward_weight(x, dy, stride, padding, columns, dweights) -> None:
    """dweights[t] += thread t's part of the gradient for the weight; dweights (threads, k, kh, kw, c)."""
    parts, k, kh, kw, c = dweights.shape
    geometry = (kh, kw, *stride, *padding, *dy.shape[1:3])
    _backward_weight(x, as_matrix(dy), geometry, columns, workspace(dy.dtype), dweights.reshape(parts, k, kh * kw * c))
