"""Pooling over windows of NHWC images: x (n, h, w, c), y (n, ho, wo, c)."""

from __future__ import annotations

import numpy as np
from numba import prange

from hpdl_mpi.kernels.jit import inline, parallel_kernel

MAX_WINDOW = 256
"""The most positions of a window: the position of the maximum is kept in one byte."""


_AT_ONCE = 4
"""Positions whose numbers are compared while the best so far stays in registers."""


@inline
def _inside(start, size, length):
    """Return the first of a window's positions along one dimension that lie in the image, and the last + 1."""
    return max(0, -start), min(size, length - start)


@inline
def _pixel(window, number, width):
    """Return a pixel of the part of a window that lies in the image, by its number there, and its position.

    The window is (image, its corner, its rows and columns that lie in the image).
    """
    image, corner, rows, columns = window
    across = columns[1] - columns[0]
    r, s = rows[0] + number // across, columns[0] + number % across
    return image[corner[0] + r, corner[1] + s], np.int32(r * width + s)


@inline
def _better(best, place, value, position):
    wins = value > best or value != value
    return (value if wins else best), (position if wins else place)


@parallel_kernel
def max_forward(x, kernel_size, stride, padding, y, where):
    """y = maximum of each window, `where` (uint8, like y) its position in the window, the first of equals.

    Padding never wins; a NaN always does.
    """
    images, height, width, channels = x.shape
    _, ho, wo, _ = y.shape
    for image in prange(images):
        for i in range(ho):
            for j in range(wo):
                best, place = y[image, i, j], where[image, i, j]
                corner = i * stride[0] - padding[0], j * stride[1] - padding[1]
                rows = _inside(corner[0], kernel_size[0], height)
                columns = _inside(corner[1], kernel_size[1], width)
                last = (rows[1] - rows[0]) * (columns[1] - columns[0]) - 1
                window = x[image], corner, rows, columns
                first, first_place = _pixel(window, 0, kernel_size[1])
                for c in range(channels):
                    best[c] = first[c]
                    place[c] = first_place
                for number in range(0, last + 1, _AT_ONCE):
                    # The last one once more changes nothing.
                    one, one_place = _pixel(window, number, kernel_size[1])
                    two, two_place = _pixel(window, min(number + 1, last), kernel_size[1])
                    three, three_place = _pixel(window, min(number + 2, last), kernel_size[1])
                    four, four_place = _pixel(window, min(number + 3, last), kernel_size[1])
                    for c in range(channels):
                        top, at = best[c], np.int32(place[c])
                        top, at = _better(top, at, one[c], one_place)
                        top, at = _better(top, at, two[c], two_place)
                        top, at = _better(top, at, three[c], three_place)
                        top, at = _better(top, at, four[c], four_place)
                        best[c] = top
                        place[c] = at


@parallel_kernel
def max_backward(dy, where, kernel_size, stride, padding, dx):
    """dx = dy sent to the position that won, summed where windows overlap."""
    images, ho, wo, channels = dy.shape
    _, height, width, _ = dx.shape
    nothing = dy.dtype.type(0.0)
    for image in prange(images):
        flat = dx[image].reshape(-1)
        for t in range(flat.size):
            flat[t] = 0
        for i in range(ho):
            for j in range(wo):
                source, place = dy[image, i, j], where[image, i, j]
                top, left = i * stride[0] - padding[0], j * stride[1] - padding[1]
                for r in range(*_inside(top, kernel_size[0], height)):
                    for s in range(*_inside(left, kernel_size[1], width)):
                        target = dx[image, top + r, left + s]
                        position = np.uint8(r * kernel_size[1] + s)
                        for c in range(channels):
                            target[c] += source[c] if place[c] == position else nothing


@parallel_kernel
def average_forward(x, kernel_size, stride, padding, y):
    """y = mean of each window, padding counted as zeros."""
    images, height, width, channels = x.shape
    _, ho, wo, _ = y.shape
    kh, kw = kernel_size
    share = x.dtype.type(1.0 / (kh * kw))
    for image in prange(images):
        for i in range(ho):
            for j in range(wo):
                mean = y[image, i, j]
                for c in range(channels):
                    mean[c] = 0
                top, left = i * stride[0] - padding[0], j * stride[1] - padding[1]
                for r in range(*_inside(top, kh, height)):
                    for s in range(*_inside(left, kw, width)):
                        source = x[image, top + r, left + s]
                        for c in range(channels):
                            mean[c] += share * source[c]


@parallel_kernel
def average_backward(dy, kernel_size, stride, padding, dx):
    """dx = dy shared evenly among the positions of its window."""
    images, ho, wo, channels = dy.shape
    _, height, width, _ = dx.shape
    kh, kw = kernel_size
    share = dy.dtype.type(1.0 / (kh * kw))
    for image in prange(images):
        flat = dx[image].reshape(-1)
        for t in range(flat.size):
            flat[t] = 0
        for i in range(ho):
            for j in range(wo):
                top, left = i * stride[0] - padding[0], j * stride[1] - padding[1]
                for r in range(*_inside(top, kh, height)):
                    for s in range(*_inside(left, kw, width)):
                        target = dx[image, top + r, left + s]
                        for c in range(channels):
                            target[c] += share * dy[image, i, j, c]


@inline
def _bin(i, size, count):
    """Return where bin i of `count` begins and ends among `size` pixels: they overlap where they do not fit."""
    return i * size // count, ((i + 1) * size + count - 1) // count


@parallel_kernel
def adaptive_forward(x, y):
    """y = mean of each of ho x wo bins, which cover the image."""
    images, height, width, channels = x.shape
    _, ho, wo, _ = y.shape
    for image in prange(images):
        for i in range(ho):
            top, bottom = _bin(i, height, ho)
            for j in range(wo):
                left, right = _bin(j, width, wo)
                share = x.dtype.type(1.0 / ((bottom - top) * (right - left)))
                mean = y[image, i, j]
                for c in range(channels):
                    mean[c] = 0
                for r in range(top, bottom):
                    for s in range(left, right):
                        source = x[image, r, s]
                        for c in range(channels):
                            mean[c] += share * source[c]


@parallel_kernel
def adaptive_backward(dy, dx):
    """dx = dy shared evenly among the pixels of its bin."""
    images, ho, wo, channels = dy.shape
    _, height, width, _ = dx.shape
    for image in prange(images):
        flat = dx[image].reshape(-1)
        for t in range(flat.size):
            flat[t] = 0
        for i in range(ho):
            top, bottom = _bin(i, height, ho)
            for j in range(wo):
                left, right = _bin(j, width, wo)
                share = dy.dtype.type(1.0 / ((bottom - top) * (right - left)))
                gradient = dy[image, i, j]
                for r in range(top, bottom):
                    for s in range(left, right):
                        target = dx[image, r, s]
                        for c in range(channels):
                            target[c] += share * gradient[c]


@parallel_kernel
def global_average_forward(x, y):
    """y = mean of each image's pixels; x (n, pixels, c), y (n, c)."""
    images, pixels, channels = x.shape
    share = x.dtype.type(1.0 / pixels)
    for image in prange(images):
        mean = y[image]
        for c in range(channels):
            mean[c] = 0
        for p in range(pixels):
            source = x[image, p]
            for c in range(channels):
                mean[c] += source[c]
        for c in range(channels):
            mean[c] *= share


@parallel_kernel
def global_average_backward(dy, dx):
    """dx = dy shared evenly among an image's pixels."""
    images, pixels, channels = dx.shape
    share = dy.dtype.type(1.0 / pixels)
    for image in prange(images):
        gradient = dy[image]
        for p in range(pixels):
            target = dx[image, p]
            for c in range(channels):
                target[c] = share * gradient[c]
