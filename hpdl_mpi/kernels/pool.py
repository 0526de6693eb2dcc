"""Pooling over windows of NHWC images: x (n, h, w, c), y (n, ho, wo, c)."""

from __future__ import annotations

import math

from numba import prange

from hpdl_mpi.kernels.jit import inline, parallel_kernel

MAX_WINDOW = 256
"""The most positions of a window: the position of the maximum is kept in one byte."""


@parallel_kernel
def max_forward(x, kernel_size, stride, padding, y, where):
    """y = maximum of each window, `where` (uint8, like y) its position in the window, the first of equals.

    Padding never wins; a NaN always does.
    """
    images, height, width, channels = x.shape
    _, ho, wo, _ = y.shape
    kh, kw = kernel_size
    lowest = x.dtype.type(-math.inf)
    for image in prange(images):
        for i in range(ho):
            for j in range(wo):
                best = y[image, i, j]
                place = where[image, i, j]
                top = i * stride[0] - padding[0]
                left = j * stride[1] - padding[1]
                first = max(0, -top) * kw + max(0, -left)
                for c in range(channels):
                    best[c] = lowest
                    place[c] = first
                for r in range(max(0, -top), min(kh, height - top)):
                    for s in range(max(0, -left), min(kw, width - left)):
                        position = r * kw + s
                        source = x[image, top + r, left + s]
                        for c in range(channels):
                            value = source[c]
                            wins = value > best[c] or value != value
                            best[c] = value if wins else best[c]
                            place[c] = position if wins else place[c]


@parallel_kernel
def max_backward(dy, where, kernel_size, stride, padding, dx):
    """dx = dy sent to the position that won, summed where windows overlap."""
    images, ho, wo, channels = dy.shape
    kw = kernel_size[1]
    for image in prange(images):
        flat = dx[image].reshape(-1)
        for t in range(flat.size):
            flat[t] = 0
        for i in range(ho):
            for j in range(wo):
                top = i * stride[0] - padding[0]
                left = j * stride[1] - padding[1]
                for c in range(channels):
                    position = where[image, i, j, c]
                    dx[image, top + position // kw, left + position % kw, c] += dy[image, i, j, c]


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
                top = i * stride[0] - padding[0]
                left = j * stride[1] - padding[1]
                for r in range(max(0, -top), min(kh, height - top)):
                    for s in range(max(0, -left), min(kw, width - left)):
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
                top = i * stride[0] - padding[0]
                left = j * stride[1] - padding[1]
                for r in range(max(0, -top), min(kh, height - top)):
                    for s in range(max(0, -left), min(kw, width - left)):
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
