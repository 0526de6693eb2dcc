"""Normalisation of channels over all other dimensions (Ioffe and Szegedy, 2015), alone or with a ReLU or ReLU6 behind.

Arrays are matrices (rows, channels). `limits` are the least and the greatest value that gets through; without an
activation they are infinite. Sums over rows are taken in blocks, each in the arrays' own precision, and these
are added up in order in double precision: so sums are accurate, and do not depend on the number of threads.
"""

from __future__ import annotations

import math

from numba import prange
from numba.extending import register_jitable

from hpdl_mpi.kernels.elementwise import clipped, held_back
from hpdl_mpi.kernels.jit import exact_kernel, inline, kernel, parallel_kernel

_BLOCK_ROWS = 256
_NARROW_BYTES = 128
"""Of a row, such that four of them are still read as if from one place."""


@register_jitable
def num_blocks(rows: int) -> int:
    """Return in how many blocks rows are summed up."""
    return -(-rows // _BLOCK_ROWS)


@inline
def _share(rows, block, blocks):
    """Return a block's first row and the last + 1."""
    return block * rows // blocks, (block + 1) * rows // blocks


def partial_shape(rows: int, channels: int) -> tuple[int, int, int]:
    """Return the shape of `partial`: sums of each block."""
    return num_blocks(rows), 3, channels


@kernel
def channel_moments(x, out):
    """out (3, c) = mean of the rows, the sum of squares of the differences to it, and what it lacks: their sum.

    Four rows are added to one another before they go to the sums of all, which registers do not hold: these are read
    and written less often. But wide rows that come from memory are read fastest one after the other.
    """
    rows, channels = x.shape
    fours = rows - rows % 4
    narrow = fours if channels * x.itemsize <= _NARROW_BYTES else 0
    mean, squares, rest = out[0], out[1], out[2]
    for c in range(channels):
        mean[c] = 0
        squares[c] = 0
        rest[c] = 0
    for p in range(0, narrow, 4):
        first, second, third, fourth = x[p], x[p + 1], x[p + 2], x[p + 3]
        for c in range(channels):
            mean[c] += (first[c] + second[c]) + (third[c] + fourth[c])
    for p in range(narrow, rows):
        row = x[p]
        for c in range(channels):
            mean[c] += row[c]
    for c in range(channels):
        mean[c] /= rows
    for p in range(0, fours, 4):  # of what is in the cache by now
        first, second, third, fourth = x[p], x[p + 1], x[p + 2], x[p + 3]
        for c in range(channels):
            m = mean[c]
            one, two, three, four = first[c] - m, second[c] - m, third[c] - m, fourth[c] - m
            squares[c] += (one * one + two * two) + (three * three + four * four)
            rest[c] += (one + two) + (three + four)
    for p in range(fours, rows):
        row = x[p]
        for c in range(channels):
            difference = row[c] - mean[c]
            squares[c] += difference * difference
            rest[c] += difference


@kernel
def _combine_moments(partial, rows, out):
    """out = mean and variance of all rows (Chan, Golub and LeVeque, 1979)."""
    blocks, _, channels = partial.shape
    for c in range(channels):
        mean, squares, seen = 0.0, 0.0, 0
        for block in range(blocks):
            first, last = _share(rows, block, blocks)
            count = last - first
            rest = partial[block, 2, c] / count
            difference = partial[block, 0, c] + rest - mean
            mean += difference * count / (seen + count)
            squares += partial[block, 1, c] - rest * rest * count
            squares += difference * difference * seen * count / (seen + count)
            seen += count
        out[0, c] = mean
        out[1, c] = squares / rows


@parallel_kernel
def find_moments(x, partial, moments):
    """moments (2, c), float64 = mean and variance of at least one row; `partial` is scratch, of `partial_shape`."""
    rows, blocks = len(x), len(partial)
    for block in prange(blocks):
        first, last = _share(rows, block, blocks)
        channel_moments(x[first:last], partial[block])
    _combine_moments(partial, rows, moments)


@exact_kernel
def join_moments(parts, moments):
    """Put together what ranks have found of rows of their own.

    Parameters
    ----------
    parts : float64 array, shape (ranks, 1 + 2 c)
        How many rows each had, their means and their variances.
    moments : float64 array, shape (2, c)
        Written: mean and variance of all rows; zeros if there are none.

    Returns
    -------
    float
        How many rows they are.
    """
    channels = moments.shape[1]
    rows = 0.0
    for c in range(channels):
        mean, squares, rows = 0.0, 0.0, 0.0
        for part in parts:
            count = part[0]
            if count > 0:
                difference = part[1 + c] - mean
                mean += difference * count / (rows + count)
                squares += part[1 + channels + c] * count + difference * difference * rows * count / (rows + count)
                rows += count
        moments[0, c] = mean
        moments[1, c] = squares / max(rows, 1.0)
    return rows


@exact_kernel
def follow(moments, rows, momentum, mean, variance):
    """Let the running mean and variance follow the moments of a batch.

    The running variance is that of all samples, of which the rows are a part.
    """
    unbiased = rows / max(1, rows - 1)
    for c in range(mean.size):
        mean[c] = (1 - momentum) * mean[c] + momentum * moments[0, c]
        variance[c] = (1 - momentum) * variance[c] + momentum * unbiased * moments[1, c]


@exact_kernel
def make_factors(mean, variance, eps, weight, bias, factors):
    """factors = mean, 1 / deviation, and the scale and the shift that `normalize` takes.

    Parameters
    ----------
    mean, variance : array, shape (c,)
    eps : float
        Added to variances.
    weight, bias : array, shape (c,)
    factors : array, shape (4, c)
        Written.
    """
    for c in range(mean.size):
        inverse = 1 / math.sqrt(variance[c] + eps)
        factors[0, c] = mean[c]
        factors[1, c] = inverse
        factors[2, c] = weight[c] * inverse
        factors[3, c] = bias[c] - mean[c] * weight[c] * inverse


@inline
def _is_bounded(limits):
    return limits[0] > -math.inf or limits[1] < math.inf


@kernel
def _normalize_rows(x, scale, shift, addend, limits, y):
    rows, channels = x.shape
    least, most = x.dtype.type(limits[0]), x.dtype.type(limits[1])
    adds, bounded = len(addend) > 0, _is_bounded(limits)
    for p in range(rows):
        source, target = x[p], y[p]
        if adds:
            other = addend[p]
            for c in range(channels):
                value = source[c] * scale[c] + shift[c] + other[c]
                target[c] = clipped(value, least, most)
        elif bounded:
            for c in range(channels):
                value = source[c] * scale[c] + shift[c]
                target[c] = clipped(value, least, most)
        else:
            for c in range(channels):
                target[c] = source[c] * scale[c] + shift[c]


@parallel_kernel
def normalize(x, factors, addend, limits, y):
    """y = x scale + shift, per channel, plus `addend`, within the limits.

    Parameters
    ----------
    x : array, shape (rows, c)
    factors : array, shape (4, c)
        Of `make_factors`.
    addend : array, shape (rows, c) or (0, c)
    limits : (float, float)
    y : array, shape (rows, c)
        Written.
    """
    rows, blocks = len(x), num_blocks(len(x))
    for block in prange(blocks):
        first, last = _share(rows, block, blocks)
        _normalize_rows(x[first:last], factors[2], factors[3], addend[first:last], limits, y[first:last])


@parallel_kernel
def normalize_by_moments(x, mean, variance, momentum, eps, weight, bias, addend, limits, partial, moments, factors, y):
    """Take the moments of a batch, let the running ones follow, and do as `make_factors` and `normalize`.

    Parameters
    ----------
    x : array, shape (rows, c)
        At least one row.
    mean, variance : array, shape (c,)
        The running ones, changed in place.
    momentum : float
        Part of the new in what becomes of the running ones, 0 to 1; with 0 they stay.
    eps, weight, bias
        See `make_factors`.
    addend, limits
        See `normalize`.
    partial : array, of `partial_shape`
        Scratch.
    moments : float64 array, shape (2, c)
        Written: mean and variance of each channel.
    factors : array, shape (4, c)
        Written.
    y : array, shape (rows, c)
        Written.
    """
    rows, blocks = len(x), len(partial)
    for block in prange(blocks):
        first, last = _share(rows, block, blocks)
        channel_moments(x[first:last], partial[block])
    _combine_moments(partial, rows, moments)
    if momentum > 0:
        follow(moments, rows, momentum, mean, variance)
    make_factors(moments[0], moments[1], eps, weight, bias, factors)
    for block in prange(blocks):
        first, last = _share(rows, block, blocks)
        _normalize_rows(x[first:last], factors[2], factors[3], addend[first:last], limits, y[first:last])


@kernel
def channel_gradients(x, dy, mean, scale, shift, limits, out):
    """out[0], out[1] = sums over rows of dy and of dy (x - mean), of what `normalize` lets pass.

    Parameters
    ----------
    x, dy : array, shape (rows, c)
    mean, scale, shift : array, shape (c,)
        Scale and shift count within finite limits alone.
    limits : (float, float)
    out : array, shape (at least 2, c)
    """
    rows, channels = x.shape
    least, most, zero = x.dtype.type(limits[0]), x.dtype.type(limits[1]), x.dtype.type(0)
    bounded = _is_bounded(limits)
    plain, weighted = out[0], out[1]
    for c in range(channels):
        plain[c] = 0
        weighted[c] = 0
    for p in range(rows):
        source, gradient = x[p], dy[p]
        for c in range(channels):
            y = source[c] * scale[c] + shift[c]
            value = zero if bounded and held_back(y, least, most) else gradient[c]
            plain[c] += value
            weighted[c] += value * (source[c] - mean[c])


@kernel
def _combine_gradients(partial, inverse, out):
    blocks, _, channels = partial.shape
    for c in range(channels):
        plain, weighted = 0.0, 0.0
        for block in range(blocks):
            plain += partial[block, 0, c]
            weighted += partial[block, 1, c]
        out[0, c] = plain
        out[1, c] = weighted * inverse[c]


@exact_kernel
def _make_gradient_factors(factors, sums, rows, out):
    """out (3, c) = what dy, x and 1 count in the gradient of so many rows."""
    for c in range(out.shape[1]):
        mean, inverse, scale = factors[0, c], factors[1, c], factors[2, c]
        of_x = -scale * inverse * sums[1, c] / max(1, rows)
        out[0, c] = scale
        out[1, c] = of_x
        out[2, c] = -scale * sums[0, c] / max(1, rows) - of_x * mean


@kernel
def _backward_rows(x, dy, scale, shift, limits, factors, dx):
    rows, channels = x.shape
    of_dy, of_x, plus = factors[0], factors[1], factors[2]
    least, most, zero = x.dtype.type(limits[0]), x.dtype.type(limits[1]), x.dtype.type(0)
    bounded = _is_bounded(limits)
    for p in range(rows):
        source, gradient, target = x[p], dy[p], dx[p]
        for c in range(channels):
            y = source[c] * scale[c] + shift[c]
            value = zero if bounded and held_back(y, least, most) else gradient[c]
            target[c] = of_dy[c] * value + (of_x[c] * source[c] + plus[c])


@parallel_kernel
def backward(x, dy, factors, limits, partial, sums, dx):
    """Compute the gradients of what `normalize_by_moments` does, but for the addend's, which is dy as it passes.

    Parameters
    ----------
    x, dy : array, shape (rows, c)
    factors : array, shape (4, c)
        Of `make_factors`.
    limits : (float, float)
        Of dy only what they let pass counts.
    partial : array, of `partial_shape`
        Scratch.
    sums : float64 array, shape (2, c)
        Written: gradients of bias and weight, sums of dy and of dy (x - mean) / deviation per channel.
    dx : array, shape (rows, c) or (0, c)
        Written.
    """
    mean, inverse, scale, shift = factors[0], factors[1], factors[2], factors[3]
    rows, blocks = len(x), len(partial)
    for block in prange(blocks):
        first, last = _share(rows, block, blocks)
        channel_gradients(x[first:last], dy[first:last], mean, scale, shift, limits, partial[block])
    _combine_gradients(partial, inverse, sums)
    if len(dx) > 0:
        means = partial[0]
        _make_gradient_factors(factors, sums, rows, means)
        for block in prange(blocks):
            first, last = _share(rows, block, blocks)
            _backward_rows(x[first:last], dy[first:last], scale, shift, limits, means, dx[first:last])


@parallel_kernel
def sum_gradients(x, dy, factors, limits, partial, sums):
    """Do the first half of `backward`: the sums alone, of at least one row."""
    rows, blocks = len(x), len(partial)
    for block in prange(blocks):
        first, last = _share(rows, block, blocks)
        channel_gradients(x[first:last], dy[first:last], factors[0], factors[2], factors[3], limits, partial[block])
    _combine_gradients(partial, factors[1], sums)


@parallel_kernel
def spread_gradients(x, dy, factors, limits, sums, count, means, dx):
    """Do the second half of `backward`, with the sums of `count` rows; `means` (3, c) is scratch."""
    rows, blocks = len(x), num_blocks(len(x))
    _make_gradient_factors(factors, sums, count, means)
    for block in prange(blocks):
        first, last = _share(rows, block, blocks)
        _backward_rows(x[first:last], dy[first:last], factors[2], factors[3], limits, means, dx[first:last])


@exact_kernel
def add_gradients(parts, dbias, dweight):
    """Add the parts of the gradients, (k, 2, c), in order to the gradients themselves, both (c,)."""
    for c in range(dbias.size):
        plain, weighted = 0.0, 0.0
        for k in range(len(parts)):
            plain += parts[k, 0, c]
            weighted += parts[k, 1, c]
        dbias[c] += plain
        dweight[c] += weighted
