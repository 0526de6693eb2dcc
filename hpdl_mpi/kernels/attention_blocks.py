"""What attention in blocks is made of, forward and backward; see `kernels.attention`."""

from __future__ import annotations

import math

import numpy as np

from hpdl_mpi.kernels.elementary import exp
from hpdl_mpi.kernels.jit import inline, kernel
from hpdl_mpi.kernels.panels import multiply_terms, onto_itself, pack_panels
from hpdl_mpi.kernels.processor import VECTOR_BYTES
from hpdl_mpi.kernels.random import drop_row
from hpdl_mpi.kernels.vector import ROWS, VECTORS

QUERIES = 16 * ROWS
"""Of a block."""

KEYS = 256
"""Of a block: whole panels. Scores of a block stay in the second-level cache."""

PITCH = KEYS + 16
"""From row to row of a block's scores. Whole pages apart they would share few sets of a cache."""

LEAST = -3e38
"""Stands for the largest of no scores: finite, so that infinities are not subtracted, and about the least there is."""

_TOGETHER = 64
"""Elements of a row that are done at once, in whole vectors: none is left to be done alone. `KEYS` is a multiple."""

_FEW_ROWS = 2 * ROWS
"""That are multiplied at once where rows look at different keys."""

_HEAD, _QUERY = 2**42, 2**21
"""Between the places, in a sample's stream of random numbers, of heads and of queries."""


def scratch_size(keys: int, dim: int) -> int:
    """Return the elements that one task needs beside its arrays, linear in the number of keys.

    A multiple of 16: what begins there is aligned for vectors.
    """
    padded_keys, padded_dim = -(-keys // KEYS) * KEYS, -(-dim // 16) * 16
    return 3 * padded_keys * padded_dim + 2 * QUERIES * (padded_dim + PITCH) + QUERIES


Place = tuple[int, int, int, int]
"""Where heads lie in a flat array: at which element the first begins, and the distances from sample to sample, from
step to step, and from head to head."""


def layout_of(sizes: tuple[int, int, int, int, int, int], *places: Place) -> np.ndarray:
    """Return what `attend` has to know of (n, queries, keys, heads, groups, dim), and of the places of q, k, v, out."""
    return np.array([sizes[:4], (*sizes[4:], 0, 0), *places], np.int64)


@inline
def padded_size(keys, dim):
    """Return the elements of a head's panels of keys, or of values."""
    return -(-keys // KEYS) * KEYS * (-(-dim // 16) * 16)


@inline
def whole_panels(columns, most, itemsize):
    """Return a number of columns filled up to whole panels, but at most `most`."""
    width = VECTORS * (VECTOR_BYTES // itemsize)
    return min(most, -(-columns // width) * width)


@inline
def num_seen(visible, keys):
    """Return how many keys there are up to the last that is visible; `visible` may be empty: all are."""
    seen = keys
    while visible.size > 0 and seen > 0 and not visible[seen - 1] > 0:
        seen -= 1
    return seen


@inline
def row_limit(query, keys, offset):
    """Return how many of so many keys a query looks at; an `offset` of the number of keys or more hides none."""
    return max(0, min(keys, query + offset + 1))


@kernel
def hide(row, first, visible):
    """Set the scores of keys that are not visible, from key `first` on, to -inf."""
    for c in range(row.size):
        if not visible[first + c] > 0:
            row[c] = -math.inf


@inline
def filled(count):
    """Return a number of scores filled up to a multiple of `_TOGETHER`."""
    return -(-count // _TOGETHER) * _TOGETHER


@kernel
def exponentials(row, count, scale, top):
    """Put exp(scale (score - top)) in place of the first `count` scores of a row, 0 in place of others; sum them up."""
    zero, total = row.dtype.type(0), row.dtype.type(0)
    for c in range(filled(count)):
        weight = exp(scale * (row[c] - top)) if c < count else zero
        row[c] = weight
        total += weight
    for c in range(filled(count), row.size):
        row[c] = zero
    return total


@kernel
def shares(row, count, scale, top, share):
    """Put share exp(scale (score - top)) in place of the first `count` scores of a row, 0 in place of others."""
    zero = row.dtype.type(0)
    for c in range(filled(count)):
        row[c] = share * exp(scale * (row[c] - top)) if c < count else zero
    for c in range(filled(count), row.size):
        row[c] = zero


@kernel
def drop_block(source, target, size, query, drop):
    """target = source / (1 - rate) where a weight is kept, else 0: drawn for (key, sample, head, query, key of it).

    The block is one of (rows, columns, first key), whose rows lie `PITCH` apart; `first` is a multiple of 4.
    """
    rate, key, sample, head = drop
    for r in range(size[0]):
        row, kept = source[r * PITCH : r * PITCH + size[1]], target[r * PITCH : r * PITCH + size[1]]
        place = np.uint64(head * _HEAD + (query + r) * _QUERY + size[2] // 4)
        drop_row(row, key, np.uint64(sample), place, rate, kept)


@inline
def head_at(place, sample, head):
    """Return the index of the first element of a sample's head, and the distance from step to step."""
    return place[0] + sample * place[1] + head * place[3], place[2]


@kernel
def multiply_causal(weights, columns, packed, panels, target, target_at, size, seen, add):
    """target = weights panels, or += with `add`: the product of a block of weights with what its keys stand for.

    Rows are done a few at a time, each few with no more terms than they look at: in a causal block half of all
    weights are 0.

    Parameters
    ----------
    weights : flat array
        Rows `PITCH` apart.
    columns, packed : int
        Of the block, and the terms that `panels` have.
    panels : flat array
    target, target_at : flat array, (start, row)
    size : (rows, dim)
    seen : int
        How many of the block's keys its first row looks at; each row looks at one more than that before.
    add : bool
    """
    few = _FEW_ROWS if seen < columns else size[0]
    for r in range(0, size[0], few):
        rows = min(np.int64(few), size[0] - r)
        terms = np.int64(0), min(columns, max(np.int64(1), seen + r + rows - 1))
        left = r * PITCH, np.int64(PITCH), np.int64(1), np.int64(ROWS * PITCH)
        place = target_at[0] + r * target_at[1], target_at[1]
        added = onto_itself(target, place, add)
        multiply_terms(terms, packed, weights, left, panels, target, place, (rows, size[1]), added)


@kernel
def multiply_causal_across(weights, rows, panels, target, target_at, size, seen):
    """target += weights^T panels: what a block's queries give to its keys; see `multiply_causal`.

    Parameters
    ----------
    weights : flat array
    rows : int
        Of the block.
    panels : flat array
        Of as many terms.
    target, target_at : flat array, (start, row)
    size : (columns, dim)
    seen : int
    """
    few = _FEW_ROWS if seen < size[0] else size[0]
    for c in range(0, size[0], few):
        columns = min(np.int64(few), size[0] - c)
        terms = max(np.int64(0), c - seen + 1), rows
        left = terms[0] * PITCH + c, np.int64(1), np.int64(PITCH), np.int64(ROWS)
        place = target_at[0] + c * target_at[1], target_at[1]
        if terms[0] < rows:
            added = onto_itself(target, place, True)
            multiply_terms(terms, rows, weights, left, panels, target, place, (columns, size[1]), added)


@kernel
def zero_rows(array, start, pitch, rows, dim):
    """Zero so many rows of a flat array, each of `dim` elements, `pitch` apart."""
    for r in range(rows):
        row = array[start + r * pitch : start + r * pitch + dim]
        for c in range(dim):
            row[c] = 0


@kernel
def pack_blocks(source, pitch, keys, dim, panels):
    """Pack blocks of `KEYS` rows as matrices of their own; that from row i on begins at i times the padded dim."""
    padded = -(-dim // 16) * 16
    for first in range(0, keys, KEYS):
        terms = np.int64(first), min(np.int64(first + KEYS), keys)
        pack_panels(source, pitch, False, terms, (np.int64(0), dim), panels[first * padded :])


@inline
def sizes_of(layout):
    """Return n, queries, keys, heads, groups and dim."""
    return layout[0, 0], layout[0, 1], layout[0, 2], layout[0, 3], layout[1, 0], layout[1, 1]
