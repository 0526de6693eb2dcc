"""Scaling of rows by their root mean square (Zhang and Sennrich, 2019); sums as in `kernels.sample_norm`."""

from __future__ import annotations

import math

from numba import prange

from hpdl_mpi.kernels.jit import parallel_kernel


@parallel_kernel
def scale_rows(x, weight, eps, inverses, y):
    """y = x / sqrt(mean of x^2 + eps) * weight, for each row.

    Parameters
    ----------
    x : array, shape (rows, c)
    weight : array, shape (c,)
    eps : float
    inverses : array, shape (rows,)
        Written: 1 / the root, for `scale_backward`.
    y : array, shape (rows, c)
    """
    one, count = x.dtype.type(1), x.dtype.type(x.shape[1])
    for p in prange(x.shape[0]):
        source, target = x[p], y[p]
        squares = x.dtype.type(0)
        for c in range(source.size):
            squares += source[c] * source[c]
        inverse = one / math.sqrt(squares / count + x.dtype.type(eps))
        inverses[p] = inverse
        for c in range(source.size):
            target[c] = source[c] * inverse * weight[c]


@parallel_kernel
def scale_backward(x, dy, weight, inverses, parts, dx):
    """Write dx, and in `parts` the gradients of the weight that blocks of rows give.

    Parameters
    ----------
    x, dy : array, shape (rows, c)
    weight : array, shape (c,)
    inverses : array, shape (rows,)
        Of `scale_rows`.
    parts : array, shape (normalization.num_blocks(rows), c)
    dx : array, shape (rows, c)
    """
    rows, channels = x.shape
    count = x.dtype.type(channels)
    for block in prange(len(parts)):
        part = parts[block]
        for c in range(channels):
            part[c] = 0
        for p in range(block * rows // len(parts), (block + 1) * rows // len(parts)):
            source, gradient, target = x[p], dy[p], dx[p]
            inverse, along = inverses[p], x.dtype.type(0)
            for c in range(channels):
                part[c] += gradient[c] * source[c] * inverse
                along += gradient[c] * weight[c] * source[c]
            along *= inverse * inverse / count
            for c in range(channels):
                target[c] = inverse * (gradient[c] * weight[c] - along * source[c])
