"""Panels: the right-hand side of a matrix product in the order in which it is read, and the product with it.

A panel is a few vectors of columns wide, and holds their terms one after the other. The sum behind an element is cut
into runs; a panel has the terms of one.
"""

from __future__ import annotations

import numpy as np

from hpdl_mpi.kernels.jit import inline, kernel
from hpdl_mpi.kernels.processor import VECTOR_BYTES
from hpdl_mpi.kernels.vector import VECTORS, copy_panels, multiply_panel, transpose_square

DEPTH_BYTES = 2048
"""Of one row of op(a), in a run: a panel is then as large as a first-level cache, or part of the second-level one."""

_multiply_wide, _multiply_double, _multiply_single = multiply_panel(VECTORS), multiply_panel(2), multiply_panel(1)


@inline
def runs_of(k, itemsize):
    """Return how many runs a sum of `k` terms is cut into."""
    return -(-k * itemsize // DEPTH_BYTES)


@inline
def terms_of(k, runs, run):
    """Return the first term of a run, and the one behind its last."""
    return run * k // runs, (run + 1) * k // runs


@inline
def packed_terms(k, itemsize):
    """Return for how many terms of a run there is room in a panel, which ends with a whole vector of them."""
    lanes = VECTOR_BYTES // itemsize
    return -(-k // (max(1, runs_of(k, itemsize)) * lanes)) * lanes


@inline
def panel_vectors(columns, lanes):
    """Return how many vectors wide the first panel of a matrix of so many columns is."""
    vectors = -(-columns // lanes)
    return VECTORS if vectors >= VECTORS else min(vectors, 2)


@inline
def onto_itself(c, c_place, add):
    """Return the `added` of `multiply_panel` where there is no bias, and c is added to with `add` or else written."""
    return c, (c_place[0], c_place[1], add), c, (np.int64(0), False)


@kernel
def multiply_panels(depth, a, a_place, panels, c, c_place, size, add):
    """Multiply with a matrix whose columns are packed into panels.

    The panels follow one another, each as wide as `panel_vectors` says of the columns from its first on; that of
    column j begins at j depth. For the other parameters, see `multiply_panel`.
    """
    added = onto_itself(c, c_place, add)
    multiply_terms((np.int64(0), depth), depth, a, a_place, panels, c, c_place, size, added)


@kernel
def multiply_terms(terms, packed, a, a_place, panels, c, c_place, size, added):
    """Multiply as `multiply_panels`, with terms from the first to the second of the `packed` ones that panels have.

    `a_place` is that of the first term that counts; there must be one. For the other parameters, see `multiply_panel`.
    """
    depth = terms[1] - terms[0]
    lanes = VECTOR_BYTES // c.itemsize
    rows, columns = size
    onto, onto_place, bias, bias_at = added
    j = 0
    while j < columns:
        vectors = panel_vectors(columns - j, lanes)
        panel, place = panels[j * packed + terms[0] * vectors * lanes :], (c_place[0] + j, c_place[1])
        present = rows, min(vectors * lanes, columns - j)
        here = onto, (onto_place[0] + j, onto_place[1], onto_place[2]), bias, (bias_at[0] + j, bias_at[1])
        if vectors == VECTORS:
            _multiply_wide(depth, a, a_place, panel, c, place, present, here)
        elif vectors == 2:
            _multiply_double(depth, a, a_place, panel, c, place, present, here)
        else:
            _multiply_single(depth, a, a_place, panel, c, place, present, here)
        j += vectors * lanes


@inline
def copy_rows(source, place, size, target, width):
    """target[i width + j] = the element i, j of `source`, for i, j in `size`."""
    for i in range(size[0]):
        start = place[0] + i * place[1]
        row = source[start : start + size[1]]
        copy = target[i * width : i * width + size[1]]
        for j in range(row.size):
            copy[j] = row[j]


@kernel
def _pack_transposed(source, place, size, panel, width):
    """panel[j width + i] = the element i, j of `source`, for i, j in `size`; j is filled up to whole vectors."""
    lanes = VECTOR_BYTES // source.itemsize
    for i in range(0, size[0], lanes):
        for j in range(0, size[1], lanes):
            corner = place[0] + i * place[1] + j, place[1]
            transpose_square(source, corner, (size[0] - i, size[1] - j), panel, (j * width + i, width))


@kernel
def pack_panels(b, b_row, trans_b, terms, columns, panels):
    """Write a range of columns of op(b), for a range of its terms, as `multiply_panels` takes them.

    Where it transposes, it fills the last panel's depth up to whole vectors, whatever stands there.
    """
    pack_terms(b, b_row, trans_b, terms, terms[1] - terms[0], columns, panels)


@kernel
def pack_terms(b, b_row, trans_b, terms, packed, columns, panels):
    """Write a range of columns of op(b), for a range of its terms, as the first of the `packed` ones that panels have.

    Where it transposes, it writes whole vectors of terms.
    """
    depth = terms[1] - terms[0]
    lanes = VECTOR_BYTES // b.itemsize
    full = VECTORS * lanes
    j = columns[0]
    if not trans_b:
        whole = (columns[1] - j) // full
        copy_panels(b, (terms[0] * b_row + j, b_row), (depth, whole), panels, packed * full)
        j += whole * full
    while j < columns[1]:
        width = panel_vectors(columns[1] - j, lanes) * lanes
        present = min(width, columns[1] - j)
        panel = panels[(j - columns[0]) * packed :]
        if trans_b:
            _pack_transposed(b, (j * b_row + terms[0], b_row), (present, depth), panel, width)
        else:
            copy_rows(b, (terms[0] * b_row + j, b_row), (depth, present), panel, width)
        j += width
