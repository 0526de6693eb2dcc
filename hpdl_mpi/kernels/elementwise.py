"""Passes over arrays: copies of a bias, sums over a batch, sums of two."""

from __future__ import annotations

import numpy as np
from numba import prange

from hpdl_mpi.kernels.jit import inline, parallel_kernel, thread_count


@inline
def lies_at(a, b):
    """Return whether two arrays begin at one address.

    A loop from an array to itself is to be written as one: for two that overlap, the compiler's loop has no vectors.
    """
    return a.ctypes.data == b.ctypes.data


@parallel_kernel
def fill_rows(row, out):
    """out[i, :] = row for all i; out (n, k), row (k,)."""
    for i in prange(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] = row[j]


@parallel_kernel
def add_rows(x, row, out):
    """out[i] = x[i] + row for all i; x, out (n, k), row (k,); `out` may be x."""
    here = lies_at(x, out)
    for i in prange(out.shape[0]):
        source, target = x[i], out[i]
        if here:
            for j in range(row.size):
                target[j] += row[j]
        else:
            for j in range(row.size):
                target[j] = source[j] + row[j]


@parallel_kernel
def _add_row_sums(x, out, parts):
    columns = x.shape[1]
    for part in prange(parts):
        start = part * columns // parts
        stop = (part + 1) * columns // parts
        total = out[start:stop]
        for i in range(x.shape[0]):
            row = x[i, start:stop]  # a slice from 0: an index that could be negative would be no vector loop
            for j in range(total.size):
                total[j] += row[j]


def add_row_sums(x, out) -> None:
    """out += x.sum(axis=0); x (n, k), out (k,). Rows are added in their order, whatever the threads."""
    _add_row_sums(x, out, thread_count())


@inline
def clipped(value, least, most):
    """Return a number where it lies from least to most, else the nearer of them; NaN stays."""
    return least if value < least else most if value > most else value


@inline
def held_back(value, least, most):
    """Return whether a result of `clipped` is at a limit, where nothing passes backward; an infinite one is none.

    A NaN is not: its gradient must be seen.
    """
    return (value <= least) | ((value >= most) & (most < np.inf))


@parallel_kernel
def add(a, b, out):
    """out = a + b; flat arrays of one size, `out` may be a."""
    if lies_at(a, out):
        for i in prange(out.size):
            out[i] += b[i]
    else:
        for i in prange(out.size):
            out[i] = a[i] + b[i]


@parallel_kernel
def multiply(a, b, out):
    """out = a b, element by element; flat arrays of one size, `out` may be a."""
    if lies_at(a, out):
        for i in prange(out.size):
            out[i] *= b[i]
    else:
        for i in prange(out.size):
            out[i] = a[i] * b[i]


@parallel_kernel
def add_clipped(a, b, low, high, out):
    """out = a + b where that lies from low to high, else the nearer of them; flat arrays as in `add`."""
    least, most = out.dtype.type(low), out.dtype.type(high)
    if lies_at(a, out):
        for i in prange(out.size):
            out[i] = clipped(out[i] + b[i], least, most)
    else:
        for i in prange(out.size):
            out[i] = clipped(a[i] + b[i], least, most)


@parallel_kernel
def copy_columns(source, target):
    """target[:] = source; both (n, k), rows contiguous, either a slice of the columns of a wider array."""
    for i in prange(source.shape[0]):
        for j in range(source.shape[1]):
            target[i, j] = source[i, j]
