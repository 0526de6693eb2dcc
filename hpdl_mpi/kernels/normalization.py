"""Normalisation of channels over all other dimensions (Ioffe and Szegedy, 2015), alone or with the ReLU that follows.

Arrays are matrices (rows, channels). Sums over rows are taken in blocks, each in the arrays' own precision, and these
are added up in order in double precision: so sums are accurate, and do not depend on the number of threads.
"""

from __future__ import annotations

from numba import prange

from hpdl_mpi.kernels.jit import kernel, parallel_kernel

_BLOCK_ROWS = 256


def partial_shape(rows: int, channels: int) -> tuple[int, int, int]:
    """Return the shape of `partial`: sums of each block."""
    return -(-rows // _BLOCK_ROWS), 3, channels


@parallel_kernel
def _block_moments(x, partial):
    """partial[b] = mean of block b, the sum of squares of the differences to it, and what it lacks: their sum."""
    rows, channels = x.shape
    blocks = len(partial)
    for block in prange(blocks):
        first, last = block * rows // blocks, (block + 1) * rows // blocks
        mean, squares, rest = partial[block, 0], partial[block, 1], partial[block, 2]
        for c in range(channels):
            mean[c] = 0
            squares[c] = 0
            rest[c] = 0
        for p in range(first, last):
            row = x[p]
            for c in range(channels):
                mean[c] += row[c]
        for c in range(channels):
            mean[c] /= last - first
        for p in range(first, last):
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
            count = (block + 1) * rows // blocks - block * rows // blocks
            rest = partial[block, 2, c] / count
            difference = partial[block, 0, c] + rest - mean
            mean += difference * count / (seen + count)
            squares += partial[block, 1, c] - rest * rest * count
            squares += difference * difference * seen * count / (seen + count)
            seen += count
        out[0, c] = mean
        out[1, c] = squares / rows


def moments(x, partial, out) -> None:
    """out = mean and variance of each channel.

    Parameters
    ----------
    x : array, shape (rows, c)
        At least one row.
    partial : array, of `partial_shape`
        Scratch.
    out : float64 array, shape (2, c)
    """
    _block_moments(x, partial)
    _combine_moments(partial, len(x), out)


@parallel_kernel
def normalize(x, scale, shift, rectifies, y):
    """y = x scale + shift, per channel; with `rectifies` not below zero."""
    rows, channels = x.shape
    for p in prange(rows):
        source, target = x[p], y[p]
        if rectifies:
            for c in range(channels):
                value = source[c] * scale[c] + shift[c]
                target[c] = 0 if value < 0 else value
        else:
            for c in range(channels):
                target[c] = source[c] * scale[c] + shift[c]


@parallel_kernel
def _block_gradients(x, dy, mean, scale, shift, rectifies, partial):
    rows, channels = x.shape
    blocks = len(partial)
    for block in prange(blocks):
        plain, weighted = partial[block, 0], partial[block, 1]
        for c in range(channels):
            plain[c] = 0
            weighted[c] = 0
        for p in range(block * rows // blocks, (block + 1) * rows // blocks):
            source, gradient = x[p], dy[p]
            for c in range(channels):
                passes = not rectifies or source[c] * scale[c] + shift[c] > 0
                value = gradient[c] if passes else 0
                plain[c] += value
                weighted[c] += value * (source[c] - mean[c])


@kernel
def _combine_gradients(partial, out):
    blocks, _, channels = partial.shape
    for c in range(channels):
        plain, weighted = 0.0, 0.0
        for block in range(blocks):
            plain += partial[block, 0, c]
            weighted += partial[block, 1, c]
        out[0, c] = plain
        out[1, c] = weighted


def gradient_sums(x, dy, mean, scale, shift, rectifies, partial, out) -> None:
    """out = sums of dy and of dy (x - mean) per channel; with `rectifies` of what `normalize` lets pass.

    Parameters
    ----------
    x, dy : array, shape (rows, c)
    mean, scale, shift : array, shape (c,)
        The last two as for `normalize`.
    partial : array, of `partial_shape`
        Scratch.
    out : float64 array, shape (2, c)
    """
    _block_gradients(x, dy, mean, scale, shift, rectifies, partial)
    _combine_gradients(partial, out)


@parallel_kernel
def backward_input(x, dy, scale, shift, rectifies, factors, dx):
    """dx = factors[0] dy + factors[1] x + factors[2], per channel, for dy as it passes; factors (3, c)."""
    rows, channels = x.shape
    of_dy, of_x, plus = factors[0], factors[1], factors[2]
    for p in prange(rows):
        source, gradient, target = x[p], dy[p], dx[p]
        for c in range(channels):
            passes = not rectifies or source[c] * scale[c] + shift[c] > 0
            value = gradient[c] if passes else 0
            target[c] = of_dy[c] * value + (of_x[c] * source[c] + plus[c])
