"""Rows of a table by number, and sums of gradients into them."""

from __future__ import annotations

from numba import prange

from hpdl_mpi.kernels.jit import kernel, parallel_kernel, thread_count


@kernel
def first_outside(tokens, count):
    """Return the place of the first of some tokens, int64 (rows,), that is not 0 to count - 1, or -1."""
    for p in range(tokens.size):
        if tokens[p] < 0 or tokens[p] >= count:
            return p
    return -1


@parallel_kernel
def take_rows(table, tokens, scale, y):
    """y[p] = scale table[tokens[p]]; table (k, c), tokens int64 (rows,) within the table, y (rows, c)."""
    factor = y.dtype.type(scale)
    for p in prange(tokens.size):
        source, target = table[tokens[p]], y[p]
        for c in range(target.size):
            target[c] = factor * source[c]


@parallel_kernel
def _add_to_rows(table, tokens, scale, values, parts):
    columns, factor = table.shape[1], table.dtype.type(scale)
    for part in prange(parts):
        start, stop = part * columns // parts, (part + 1) * columns // parts
        for p in range(tokens.size):
            source, target = values[p, start:stop], table[tokens[p], start:stop]
            for c in range(target.size):
                target[c] += factor * source[c]


def add_to_rows(table, tokens, scale, values) -> None:
    """table[tokens[p]] += scale values[p], in the order of p whatever the threads; shapes as `take_rows` has them."""
    _add_to_rows(table, tokens, scale, values, thread_count())


@kernel
def mark_others(tokens, token, mask):
    """mask[p] = 0 where a token is this one, else 1; both flat."""
    one, zero = mask.dtype.type(1), mask.dtype.type(0)
    for p in range(tokens.size):
        mask[p] = zero if tokens[p] == token else one
