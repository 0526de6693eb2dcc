"""Normalisation within a sample: of rows (Ba, Kiros and Hinton, 2016) and of groups of channels (Wu and He, 2018).

Both go over a sample twice, which stays in the cache: for its mean and variance, then for the output; backward for
sums of gradients, then for dx. Gradients of weight and bias are summed up in parts (rows in blocks, or samples), which
`normalization.add_gradients` adds up in order: so no sum depends on the number of threads.
"""

from __future__ import annotations

import math

from numba import prange

from hpdl_mpi.kernels.jit import kernel, parallel_kernel
from hpdl_mpi.kernels.normalization import channel_gradients, channel_moments

_NO_LIMITS = -math.inf, math.inf


@parallel_kernel
def normalize_rows(x, weight, bias, eps, moments, y):
    """y = (x - mean) / deviation * weight + bias, for each row.

    Parameters
    ----------
    x : array, shape (rows, c)
    weight, bias : array, shape (c,)
    eps : float
        Added to variances.
    moments : array, shape (rows, 2)
        Written: mean and 1 / deviation, for `rows_backward`.
    y : array, shape (rows, c)
    """
    one, count = x.dtype.type(1), x.dtype.type(x.shape[1])
    for p in prange(x.shape[0]):
        source, target = x[p], y[p]
        total, squares, rest = x.dtype.type(0), x.dtype.type(0), x.dtype.type(0)
        for c in range(source.size):
            total += source[c]
        mean = total / count
        for c in range(source.size):
            difference = source[c] - mean
            squares += difference * difference
            rest += difference
        rest /= count  # what the mean lacks
        mean += rest
        variance = squares / count - rest * rest
        if variance < 0:  # by rounding, where all are nearly the same
            variance = x.dtype.type(0)
        inverse = one / math.sqrt(variance + x.dtype.type(eps))
        moments[p, 0], moments[p, 1] = mean, inverse
        for c in range(source.size):
            target[c] = (source[c] - mean) * inverse * weight[c] + bias[c]


@parallel_kernel
def rows_backward(x, dy, weight, moments, parts, dx):
    """Write dx, and in `parts` the gradients of bias and weight that blocks of rows give.

    Parameters
    ----------
    x, dy : array, shape (rows, c)
    weight : array, shape (c,)
    moments : array, shape (rows, 2)
        Of `normalize_rows`.
    parts : array, shape (normalization.num_blocks(rows), 2, c)
    dx : array, shape (rows, c)
    """
    rows, channels = x.shape
    count = x.dtype.type(channels)
    for block in prange(len(parts)):
        plain, weighted = parts[block, 0], parts[block, 1]
        for c in range(channels):
            plain[c] = 0
            weighted[c] = 0
        for p in range(block * rows // len(parts), (block + 1) * rows // len(parts)):
            source, gradient = x[p], dy[p]
            mean, inverse = moments[p, 0], moments[p, 1]
            total, along = x.dtype.type(0), x.dtype.type(0)
            for c in range(channels):
                normal = (source[c] - mean) * inverse
                plain[c] += gradient[c]
                weighted[c] += gradient[c] * normal
                total += gradient[c] * weight[c]
                along += gradient[c] * weight[c] * normal
            total /= count
            along /= count
            target = dx[p]
            for c in range(channels):
                normal = (source[c] - mean) * inverse
                target[c] = inverse * (gradient[c] * weight[c] - total - along * normal)


@kernel
def _group_moments(partial, pixels, eps):
    """Return the mean of a group and 1 / deviation, of `channel_moments` of its blocks, (blocks, 3, channels)."""
    blocks, _, channels = partial.shape
    total, squares = 0.0, 0.0
    for block in range(blocks):
        count = (block + 1) * pixels // blocks - block * pixels // blocks
        for c in range(channels):
            total += partial[block, 0, c] * count + partial[block, 2, c]
    mean = total / (pixels * channels)
    for block in range(blocks):
        count = (block + 1) * pixels // blocks - block * pixels // blocks
        for c in range(channels):
            rest = partial[block, 2, c] / count
            difference = partial[block, 0, c] + rest - mean
            squares += partial[block, 1, c] + (difference * difference - rest * rest) * count
    if squares < 0:  # by rounding, where all are nearly the same
        squares = 0.0
    return mean, 1 / math.sqrt(squares / (pixels * channels) + eps)


@parallel_kernel
def normalize_groups(x, weight, bias, eps, partial, factors, moments, y):
    """y = (x - mean) / deviation * weight + bias, for each group of channels of each sample.

    Parameters
    ----------
    x : array, shape (n, pixels, c)
    weight, bias : array, shape (c,)
    eps : float
        Added to variances.
    partial : array, shape (n, normalization.num_blocks(pixels), 3, c)
        Scratch.
    factors : array, shape (n, 3, c)
        Scratch.
    moments : array, shape (n, groups, 2)
        Written: mean and 1 / deviation, for `groups_backward`.
    y : array, shape (n, pixels, c)
    """
    images, pixels, channels = x.shape
    blocks, groups = partial.shape[1], moments.shape[1]
    size = channels // groups
    for image in prange(images):
        for block in range(blocks):
            rows = x[image, block * pixels // blocks : (block + 1) * pixels // blocks]
            channel_moments(rows, partial[image, block])
        scale, shift = factors[image, 0], factors[image, 1]
        for group in range(groups):
            first, last = group * size, (group + 1) * size
            mean, inverse = _group_moments(partial[image, :, :, first:last], pixels, eps)
            moments[image, group, 0], moments[image, group, 1] = mean, inverse
            for c in range(first, last):
                scale[c] = weight[c] * inverse
                shift[c] = bias[c] - mean * weight[c] * inverse
        for p in range(pixels):
            source, target = x[image, p], y[image, p]
            for c in range(channels):
                target[c] = source[c] * scale[c] + shift[c]


@parallel_kernel
def groups_backward(x, dy, weight, moments, partial, factors, parts, dx):
    """Write dx, and in `parts` the gradients of bias and weight that samples give.

    Parameters
    ----------
    x, dy : array, shape (n, pixels, c)
    weight : array, shape (c,)
    moments : array, shape (n, groups, 2)
        Of `normalize_groups`.
    partial : array, shape (n, normalization.num_blocks(pixels), 3, c)
        Scratch.
    factors : array, shape (n, 3, c)
        Scratch.
    parts : array, shape (n, 2, c)
    dx : array, shape (n, pixels, c)
    """
    images, pixels, channels = x.shape
    blocks, groups = partial.shape[1], moments.shape[1]
    size = channels // groups
    for image in prange(images):
        of_dy, of_x, plus = factors[image, 0], factors[image, 1], factors[image, 2]
        plain, weighted = parts[image, 0], parts[image, 1]
        means = plus
        for c in range(channels):
            means[c] = moments[image, c // size, 0]
        for block in range(blocks):
            first, last = block * pixels // blocks, (block + 1) * pixels // blocks
            rows, gradients = x[image, first:last], dy[image, first:last]
            channel_gradients(rows, gradients, means, means, means, _NO_LIMITS, partial[image, block])
        for group in range(groups):
            mean, inverse = moments[image, group, 0], moments[image, group, 1]
            total, along = 0.0, 0.0
            for c in range(group * size, (group + 1) * size):
                one, other = 0.0, 0.0
                for block in range(blocks):
                    one += partial[image, block, 0, c]
                    other += partial[image, block, 1, c]
                plain[c], weighted[c] = one, other * inverse
                total += weight[c] * one
                along += weight[c] * other * inverse
            slope = -inverse * inverse * along / (pixels * size)
            for c in range(group * size, (group + 1) * size):
                of_dy[c] = weight[c] * inverse
                of_x[c] = slope
                plus[c] = -inverse * total / (pixels * size) - slope * mean
        for p in range(pixels):
            source, gradient, target = x[image, p], dy[image, p], dx[image, p]
            for c in range(channels):
                target[c] = of_dy[c] * gradient[c] + (of_x[c] * source[c] + plus[c])
