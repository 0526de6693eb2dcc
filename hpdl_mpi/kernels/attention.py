"""Scaled dot-product attention in blocks with an online softmax: no array of queries by keys is ever stored.

Forward goes over blocks of keys and keeps, of each query, the largest score so far and the sum of exponentials (Milakov
and Gimelshein, "Online normalizer calculation for softmax", 2018). Backward makes the weights of a block anew from the
logarithm of that sum (Dao, "FlashAttention-2", 2023). Products are those of `kernels.gemm`, on panels that are packed
once for each head. A task is a sample and a head of keys and values, with all heads of queries that share it (Ainslie
et al., "GQA", 2023); tasks know nothing of one another, so bits do not depend on the number of threads.

All arrays are flat, and a `layout` says where heads lie in them: so q, k and v can be parts of one array.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from hpdl_mpi.kernels.elementary import exp
from hpdl_mpi.kernels.emit import VECTOR_BYTES
from hpdl_mpi.kernels.gemm import multiply_deeper_panels, multiply_panels, pack_panels
from hpdl_mpi.kernels.jit import inline, kernel, parallel_kernel
from hpdl_mpi.kernels.random import philox
from hpdl_mpi.kernels.vector import ROWS, VECTORS

_QUERIES = 16 * ROWS
"""Of a block."""

_KEYS = 256
"""Of a block: whole panels. Scores of a block stay in the second-level cache."""

_PITCH = _KEYS + 16
"""From row to row of a block's scores. Whole pages apart they would share few sets of a cache."""

_LEAST = -1e30
"""Stands for the largest of no scores: finite, so that infinities are not subtracted."""

_UNSEEN = math.inf
"""Stands for the logarithm of the sum of a query that sees no key: all its weights are 0."""

_HEAD, _QUERY = 2**42, 2**21
"""Between the places, in a sample's stream of random numbers, of heads and of queries."""


def scratch_size(keys: int, dim: int) -> int:
    """Return the elements that one task needs beside its arrays, linear in the number of keys.

    A multiple of 16: what begins there is aligned for vectors.
    """
    padded_keys, padded_dim = -(-keys // _KEYS) * _KEYS, -(-dim // 16) * 16
    return 3 * padded_keys * padded_dim + 2 * _QUERIES * (padded_dim + _PITCH) + 3 * _QUERIES


Place = tuple[int, int, int, int]
"""Where heads lie in a flat array: at which element the first begins, and the distances from sample to sample, from
step to step, and from head to head."""


def layout_of(sizes: tuple[int, int, int, int, int, int], *places: Place) -> np.ndarray:
    """Return what `attend` has to know of (n, queries, keys, heads, groups, dim), and of the places of q, k, v, out."""
    return np.array([sizes[:4], (*sizes[4:], 0, 0), *places], np.int64)


@inline
def _padded_size(keys, dim):
    """Return the elements of a head's panels of keys, or of values."""
    return -(-keys // _KEYS) * _KEYS * (-(-dim // 16) * 16)


@inline
def _whole_panels(columns, most, itemsize):
    """Return a number of columns filled up to whole panels, but at most `most`."""
    width = VECTORS * (VECTOR_BYTES // itemsize)
    return min(most, -(-columns // width) * width)


@inline
def _num_seen(visible, keys):
    """Return how many keys there are up to the last that is visible; `visible` may be empty: all are."""
    seen = keys
    while visible.size > 0 and seen > 0 and visible[seen - 1] <= 0:
        seen -= 1
    return seen


@inline
def _row_limit(query, keys, offset):
    """Return how many of so many keys a query looks at; an `offset` of the number of keys or more hides none."""
    return max(0, min(keys, query + offset + 1))


@kernel
def _hide(row, first, visible):
    """Set the scores of keys that are not visible, from key `first` on, to -inf."""
    for c in range(row.size):
        if visible[first + c] <= 0:
            row[c] = -math.inf


@kernel
def _exponentials(row, scale, top):
    """Put exp(scale (score - top)) in place of a row of scores; return the sum."""
    total = row.dtype.type(0)
    for c in range(row.size):
        weight = exp(scale * (row[c] - top))
        row[c] = weight
        total += weight
    return total


@kernel
def _exponentials_less(row, scale, less):
    """Put exp(scale score - less) in place of a row of scores."""
    for c in range(row.size):
        row[c] = exp(scale * row[c] - less)


@inline
def _largest(row, least):
    """Return the largest element of a row, or `least`; four at a time, since each has to wait for the one before."""
    tops = (least, least, least, least)
    whole = row.size - row.size % 4
    for c in range(0, whole, 4):
        tops = (max(row[c], tops[0]), max(row[c + 1], tops[1]), max(row[c + 2], tops[2]), max(row[c + 3], tops[3]))
    top = max(max(tops[0], tops[1]), max(tops[2], tops[3]))
    for c in range(whole, row.size):
        top = max(row[c], top)
    return top


@kernel
def _drop_weights(source, target, key, sample, head, query, first, rate):
    """target = source / (1 - rate) where a weight is kept, else 0: drawn for (key, sample, head, query, key of it).

    `first`, the number of the first key, is a multiple of 4.
    """
    threshold = np.uint64(rate * 4294967296.0)
    scale = source.dtype.type(1.0 / (1.0 - rate))
    zero = source.dtype.type(0.0)
    place = np.uint64(head * _HEAD + query * _QUERY + first // 4)
    for start in range(0, source.size, 4):
        words = philox(key, np.uint64(sample), place + np.uint64(start // 4))
        for j in range(min(4, source.size - start)):
            target[start + j] = source[start + j] * scale if words[j] >= threshold else zero


@kernel
def _drop_block(source, target, size, query, drop):
    """Do `_drop_weights` for a block of (rows, columns, first key), whose rows lie `_PITCH` apart."""
    rate, key, sample, head = drop
    for r in range(size[0]):
        row, kept = source[r * _PITCH : r * _PITCH + size[1]], target[r * _PITCH : r * _PITCH + size[1]]
        _drop_weights(row, kept, key, sample, head, query + r, size[2], rate)


@inline
def _at(place, sample, head):
    """Return the index of the first element of a sample's head, and the distance from step to step."""
    return place[0] + sample * place[1] + head * place[3], place[2]


@kernel
def _zero_rows(array, start, pitch, rows, dim):
    for r in range(rows):
        row = array[start + r * pitch : start + r * pitch + dim]
        for c in range(dim):
            row[c] = 0


@kernel
def _pack_blocks(source, pitch, keys, dim, panels):
    """Pack blocks of `_KEYS` rows as matrices of their own; that from row i on begins at i times the padded dim."""
    padded = -(-dim // 16) * 16
    for first in range(0, keys, _KEYS):
        terms = np.int64(first), min(np.int64(first + _KEYS), keys)
        pack_panels(source, pitch, False, terms, (np.int64(0), dim), panels[first * padded :])


@kernel
def _attend_block(q, q_at, block, seen, dim, scale, panels, visible, drop, out, out_at, sums, scratch):
    """Write the outputs of a block of queries, and the logarithm of each one's sum of exponentials.

    Parameters
    ----------
    q, q_at : flat array, (start, row)
    block : (query, rows)
        The number of the first query, and how many there are.
    seen : (keys, offset)
    dim : int
    scale : float
    panels : (array, array)
        The transposed keys, and blocks of values.
    visible : array, shape (keys,), or empty
    drop : (rate, key, sample, head)
    out, out_at : flat array, (start, row)
    sums : array, shape (rows,)
        Written.
    scratch : flat array
    """
    (query, rows), (keys, offset), (keys_across, values) = block, seen, panels
    scores, dropped = scratch[: _QUERIES * _PITCH], scratch[_QUERIES * _PITCH : 2 * _QUERIES * _PITCH]
    tops, totals = scratch[2 * _QUERIES * _PITCH :], sums
    padded = -(-dim // 16) * 16
    zero = q.dtype.type(0)
    for r in range(rows):
        tops[r] = _LEAST
        totals[r] = 0
    most = _row_limit(query + rows - 1, keys, offset)
    if most == 0:
        _zero_rows(out, out_at[0], out_at[1], rows, dim)
    for first in range(0, most, _KEYS):
        present = min(np.int64(_KEYS), keys - first)
        columns = _whole_panels(most - first, present, q.itemsize)
        left = q_at[0], q_at[1], np.int64(1), ROWS * q_at[1]
        place = np.int64(0), np.int64(_PITCH)
        multiply_panels(dim, q, left, keys_across[first * dim :], scores, place, (rows, columns), False)
        for r in range(rows):
            row = scores[r * _PITCH : r * _PITCH + columns]
            count = max(0, min(columns, _row_limit(query + r, keys, offset) - first))
            if visible.size > 0:
                _hide(row[:count], first, visible)
            top = _largest(row[:count], tops[r])
            factor = exp(scale * (tops[r] - top))
            tops[r] = top
            totals[r] = totals[r] * factor + _exponentials(row[:count], scale, top)
            for c in range(count, columns):
                row[c] = zero
            if first > 0 and factor != 1:
                begun = out[out_at[0] + r * out_at[1] : out_at[0] + r * out_at[1] + dim]
                for c in range(dim):
                    begun[c] *= factor
        weights = scores
        if drop[0] > 0:
            weights = dropped
            _drop_block(scores, dropped, (rows, columns, first), query, drop)
        left = np.int64(0), np.int64(_PITCH), np.int64(1), np.int64(ROWS * _PITCH)
        below = values[first * padded :]
        multiply_deeper_panels(columns, present, weights, left, below, out, out_at, (rows, dim), first > 0)
    for r in range(rows):
        total = totals[r]
        share = 1 / total if total > 0 else total  # what sees nothing is 0; a NaN stays one
        row = out[out_at[0] + r * out_at[1] : out_at[0] + r * out_at[1] + dim]
        for c in range(dim):
            row[c] *= share
        sums[r] = _UNSEEN if total == 0 else scale * tops[r] + math.log(total)


@inline
def _sizes_of(layout):
    """Return n, queries, keys, heads, groups and dim."""
    return layout[0, 0], layout[0, 1], layout[0, 2], layout[0, 3], layout[1, 0], layout[1, 1]


@kernel
def _attend_part(part, q, k, v, out, layout, offset, visible, rate, key, sample_ids, sums, scratch):
    """Do one of `len(scratch)` parts of `attend`."""
    n, queries, keys, heads, groups, dim = _sizes_of(layout)
    scale = out.dtype.type(1 / math.sqrt(dim))
    tasks, parts, size = n * groups, len(scratch), heads // groups
    padded = _padded_size(keys, dim)
    keys_across, values, rest = scratch[part, :padded], scratch[part, padded : 2 * padded], scratch[part, 2 * padded :]
    for task in range(part * tasks // parts, (part + 1) * tasks // parts):
        i, group = task // groups, task % groups
        seen = _num_seen(visible[i], keys)
        start, pitch = _at(layout[3], i, group)
        pack_panels(k[start:], pitch, True, (np.int64(0), dim), (np.int64(0), seen), keys_across)
        start, pitch = _at(layout[4], i, group)
        _pack_blocks(v[start:], pitch, seen, dim, values)
        for head in range(group * size, (group + 1) * size):
            q_start, q_row = _at(layout[2], i, head)
            out_start, out_row = _at(layout[5], i, head)
            for query in range(0, queries, _QUERIES):
                rows = min(np.int64(_QUERIES), queries - query)
                _attend_block(
                    q,
                    (q_start + query * q_row, q_row),
                    (query, rows),
                    (seen, offset),
                    dim,
                    scale,
                    (keys_across, values),
                    visible[i],
                    (rate, key, sample_ids[i], head),
                    out,
                    (out_start + query * out_row, out_row),
                    sums[i, head, query : query + rows],
                    rest,
                )


@parallel_kernel
def attend(q, k, v, out, layout, offset, visible, rate, key, sample_ids, sums, scratch):
    """out = softmax(q k^T / sqrt(dim)) v, of each sample and head.

    Parameters
    ----------
    q, k, v, out : flat array
        Of (n, queries, heads, dim), (n, keys, groups, dim) twice, and (n, queries, heads, dim), which is written. Keys
        and values of head h are those of group h groups // heads.
    layout : int64 array, shape (6, 4)
        Of `layout_of`.
    offset : int
        Query t sees keys up to t + offset: all of them if that is the number of keys.
    visible : array, shape (n, keys) or (n, 0)
        A key is hidden where it is not above 0. The output of a query that sees nothing is 0.
    rate : float
        At which weights are dropped, the others growing to make up for it.
    key : uint64
        The random key.
    sample_ids : int64 array, shape (n,)
    sums : array, shape (n, heads, queries)
        Written: the logarithm of each query's sum of exponentials, for `attend_backward`.
    scratch : array, shape (parts, scratch_size(keys, dim))
        The work is cut into so many parts.
    """
    for part in prange(len(scratch)):
        _attend_part(part, q, k, v, out, layout, offset, visible, rate, key, sample_ids, sums, scratch)


@kernel
def _remake_weights(scores, size, query, seen, scale, visible, sums):
    """Put softmax weights in place of a block of scores.

    Parameters
    ----------
    scores : flat array
    size : (rows, columns, first)
        Of the block, and the number of its first key.
    query : int
        The number of its first query.
    seen : (keys, offset)
    scale : float
    visible : array, shape (keys,), or empty
    sums : array, shape (rows,)
        Of `attend`.
    """
    rows, columns, first = size
    for r in range(rows):
        row = scores[r * _PITCH : r * _PITCH + columns]
        count = max(0, min(columns, _row_limit(query + r, seen[0], seen[1]) - first))
        if visible.size > 0:
            _hide(row[:count], first, visible)
        _exponentials_less(row[:count], scale, sums[r])
        for c in range(count, columns):
            row[c] = 0


@kernel
def _through_softmax(weights, gradients, size, scale, along):
    """Put the gradient of scores in place of that of weights: weights (gradients - along) scale, row by row."""
    for r in range(size[0]):
        row, gradient = weights[r * _PITCH : r * _PITCH + size[1]], gradients[r * _PITCH : r * _PITCH + size[1]]
        less = along[r]
        for c in range(row.size):
            gradient[c] = row[c] * (gradient[c] - less) * scale


@kernel
def _backward_block(arrays, places, block, seen, dim, scale, panels, visible, drop, sums, scratch):
    """Add what a block of queries gives to the gradients of keys and values, and write those of the queries.

    Parameters
    ----------
    arrays : (q, out, dout, dq, dk, dv)
        Flat.
    places : ((start, row), ...)
        Of the block in q and in out, and of all keys and values; gradients lie alike.
    block, seen, dim, scale, visible, drop
        As `_attend_block` takes them.
    panels : (array, array, array)
        The transposed keys and values, and blocks of keys.
    sums : array, shape (rows,)
    scratch : flat array
    """
    (query, rows), (keys, offset), (keys_across, values_across, keys_down) = block, seen, panels
    q, out, dout, dq, dk, dv = arrays
    q_at, out_at, k_at, v_at = places
    padded = -(-dim // 16) * 16
    plane, deep = _QUERIES * _PITCH, _QUERIES * padded
    weights, gradients, along = scratch[:plane], scratch[plane : 2 * plane], scratch[2 * plane : 2 * plane + _QUERIES]
    q_panel = scratch[2 * plane + _QUERIES : 2 * plane + _QUERIES + deep]
    dout_panel = scratch[2 * plane + _QUERIES + deep : 2 * plane + _QUERIES + 2 * deep]
    all_rows, all_columns = (np.int64(0), rows), (np.int64(0), dim)
    pack_panels(q[q_at[0] :], q_at[1], False, all_rows, all_columns, q_panel)
    pack_panels(dout[out_at[0] :], out_at[1], False, all_rows, all_columns, dout_panel)
    for r in range(rows):
        result = out[out_at[0] + r * out_at[1] : out_at[0] + r * out_at[1] + dim]
        gradient = dout[out_at[0] + r * out_at[1] : out_at[0] + r * out_at[1] + dim]
        inner = q.dtype.type(0)
        for c in range(dim):
            inner += result[c] * gradient[c]
        along[r] = inner
    most = _row_limit(query + rows - 1, keys, offset)
    if most == 0:
        _zero_rows(dq, q_at[0], q_at[1], rows, dim)
    down = np.int64(0), np.int64(_PITCH), np.int64(1), np.int64(ROWS * _PITCH)
    across = np.int64(0), np.int64(1), np.int64(_PITCH), np.int64(ROWS)
    flat = np.int64(0), np.int64(_PITCH)
    for first in range(0, most, _KEYS):
        present = min(np.int64(_KEYS), keys - first)
        columns = _whole_panels(most - first, present, q.itemsize)
        left = q_at[0], q_at[1], np.int64(1), ROWS * q_at[1]
        multiply_panels(dim, q, left, keys_across[first * dim :], weights, flat, (rows, columns), False)
        _remake_weights(weights, (rows, columns, first), query, seen, scale, visible, sums)
        target = v_at[0] + first * v_at[1], v_at[1]
        if drop[0] > 0:
            _drop_block(weights, gradients, (rows, columns, first), query, drop)
            multiply_panels(rows, gradients, across, dout_panel, dv, target, (columns, dim), True)
        else:
            multiply_panels(rows, weights, across, dout_panel, dv, target, (columns, dim), True)
        left = out_at[0], out_at[1], np.int64(1), ROWS * out_at[1]
        multiply_panels(dim, dout, left, values_across[first * dim :], gradients, flat, (rows, columns), False)
        if drop[0] > 0:
            _drop_block(gradients, gradients, (rows, columns, first), query, drop)
        _through_softmax(weights, gradients, (rows, columns), scale, along)
        below = keys_down[first * padded :]
        multiply_deeper_panels(columns, present, gradients, down, below, dq, q_at, (rows, dim), first > 0)
        target = k_at[0] + first * k_at[1], k_at[1]
        multiply_panels(rows, gradients, across, q_panel, dk, target, (columns, dim), True)


@kernel
def _backward_part(part, q, k, v, out, dout, dq, dk, dv, layout, offset, visible, rate, key, sample_ids, sums, scratch):
    """Do one of `len(scratch)` parts of `attend_backward`."""
    n, queries, keys, heads, groups, dim = _sizes_of(layout)
    scale = out.dtype.type(1 / math.sqrt(dim))
    tasks, parts, size = n * groups, len(scratch), heads // groups
    padded = _padded_size(keys, dim)
    keys_across, values_across = scratch[part, :padded], scratch[part, padded : 2 * padded]
    keys_down, rest = scratch[part, 2 * padded : 3 * padded], scratch[part, 3 * padded :]
    for task in range(part * tasks // parts, (part + 1) * tasks // parts):
        i, group = task // groups, task % groups
        seen = _num_seen(visible[i], keys)
        k_at, v_at = _at(layout[3], i, group), _at(layout[4], i, group)
        pack_panels(k[k_at[0] :], k_at[1], True, (np.int64(0), dim), (np.int64(0), seen), keys_across)
        _pack_blocks(k[k_at[0] :], k_at[1], seen, dim, keys_down)
        pack_panels(v[v_at[0] :], v_at[1], True, (np.int64(0), dim), (np.int64(0), seen), values_across)
        _zero_rows(dk, k_at[0], k_at[1], keys, dim)
        _zero_rows(dv, v_at[0], v_at[1], keys, dim)
        for head in range(group * size, (group + 1) * size):
            q_start, q_row = _at(layout[2], i, head)
            out_start, out_row = _at(layout[5], i, head)
            for query in range(0, queries, _QUERIES):
                rows = min(np.int64(_QUERIES), queries - query)
                _backward_block(
                    (q, out, dout, dq, dk, dv),
                    ((q_start + query * q_row, q_row), (out_start + query * out_row, out_row), k_at, v_at),
                    (query, rows),
                    (seen, offset),
                    dim,
                    scale,
                    (keys_across, values_across, keys_down),
                    visible[i],
                    (rate, key, sample_ids[i], head),
                    sums[i, head, query : query + rows],
                    rest,
                )


@parallel_kernel
def attend_backward(q, k, v, out, dout, dq, dk, dv, layout, offset, visible, rate, key, sample_ids, sums, scratch):
    """Write the gradients of what `attend` took, from that of its output.

    Parameters
    ----------
    q, k, v, out : flat array
    dout, dq, dk, dv : flat array
        They lie like `out`, `q`, `k` and `v`; the last three are written.
    layout, offset, visible, rate, key, sample_ids
        As `attend` takes them.
    sums : array, shape (n, heads, queries)
        Of `attend`.
    scratch : array, shape (parts, scratch_size(keys, dim))
    """
    for part in prange(len(scratch)):
        _backward_part(
            part, q, k, v, out, dout, dq, dk, dv, layout, offset, visible, rate, key, sample_ids, sums, scratch
        )
