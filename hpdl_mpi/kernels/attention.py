"""Scaled dot-product attention in blocks with an online softmax: no array of queries by keys is ever stored.

Forward goes over blocks of keys and keeps, of each query, the largest score so far and the sum of exponentials (Milakov
and Gimelshein, "Online normalizer calculation for softmax", 2018). Backward makes the weights of a block anew from both
(Dao et al., "FlashAttention", 2022). Products are those of `kernels.gemm`, on panels that are packed once for each
head. A task is a sample and a head of keys and values, with all heads of queries that share it (Ainslie et al., "GQA",
2023); tasks know nothing of one another, so bits do not depend on the number of threads.

All arrays are flat, and a `layout` says where heads lie in them: so q, k and v can be parts of one array.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from hpdl_mpi.kernels.attention_blocks import (
    KEYS,
    LEAST,
    PITCH,
    QUERIES,
    drop_block,
    exponentials,
    filled,
    head_at,
    hide,
    multiply_causal,
    num_seen,
    pack_blocks,
    padded_size,
    row_limit,
    sizes_of,
    whole_panels,
    zero_rows,
)
from hpdl_mpi.kernels.elementary import exp
from hpdl_mpi.kernels.jit import kernel, parallel_kernel
from hpdl_mpi.kernels.panels import multiply_panels, pack_panels
from hpdl_mpi.kernels.rows import largest, scale_row
from hpdl_mpi.kernels.vector import ROWS


@kernel
def _attend_block(q, q_at, block, seen, dim, scale, panels, visible, drop, out, out_at, norms, scratch):
    """Write the outputs of a block of queries, and what their weights can be made from again.

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
    norms : array, shape (2, rows)
        Written, as those of `attend`.
    scratch : flat array
    """
    (query, rows), (keys, offset), (keys_across, values) = block, seen, panels
    scores, dropped = scratch[: QUERIES * PITCH], scratch[QUERIES * PITCH : 2 * QUERIES * PITCH]
    tops, totals = norms[0], norms[1]
    padded = -(-dim // 16) * 16
    for r in range(rows):
        tops[r] = LEAST
        totals[r] = 0
    most = row_limit(query + rows - 1, keys, offset)
    if most == 0:
        zero_rows(out, out_at[0], out_at[1], rows, dim)
    for first in range(0, most, KEYS):
        present = min(np.int64(KEYS), keys - first)
        columns = whole_panels(most - first, present, q.itemsize)
        left = q_at[0], q_at[1], np.int64(1), ROWS * q_at[1]
        place = np.int64(0), np.int64(PITCH)
        multiply_panels(dim, q, left, keys_across[first * dim :], scores, place, (rows, columns), False)
        for r in range(rows):
            row = scores[r * PITCH : r * PITCH + filled(columns)]
            count = max(0, min(columns, row_limit(query + r, keys, offset) - first))
            if visible.size > 0:
                hide(row[:count], first, visible)
            top = largest(row[:count], tops[r])
            total = exponentials(row, count, scale, top)
            if first > 0:
                factor = exp(scale * (tops[r] - top))
                total += totals[r] * factor
                if factor != 1:
                    scale_row(out[out_at[0] + r * out_at[1] : out_at[0] + r * out_at[1] + dim], factor)
            tops[r], totals[r] = top, total
        weights = scores
        if drop[0] > 0:
            weights = dropped
            drop_block(scores, dropped, (rows, columns, first), query, drop)
        begins = row_limit(query, keys, offset) - first
        multiply_causal(
            weights, columns, present, values[first * padded :], out, out_at, (rows, dim), begins, first > 0
        )
    for r in range(rows):
        total = totals[r]
        totals[r] = 1 / total if total > 0 else total  # what sees nothing is 0; a NaN stays one
        scale_row(out[out_at[0] + r * out_at[1] : out_at[0] + r * out_at[1] + dim], totals[r])


@kernel
def _attend_part(part, q, k, v, out, layout, offset, visible, rate, key, sample_ids, norms, scratch):
    """Do one of `len(scratch)` parts of `attend`."""
    n, queries, keys, heads, groups, dim = sizes_of(layout)
    scale = out.dtype.type(1 / math.sqrt(dim))
    tasks, parts, size = n * groups, len(scratch), heads // groups
    padded = padded_size(keys, dim)
    keys_across, values, rest = scratch[part, :padded], scratch[part, padded : 2 * padded], scratch[part, 2 * padded :]
    for task in range(part * tasks // parts, (part + 1) * tasks // parts):
        i, group = task // groups, task % groups
        seen = num_seen(visible[i], keys)
        start, pitch = head_at(layout[3], i, group)
        pack_panels(k[start:], pitch, True, (np.int64(0), dim), (np.int64(0), seen), keys_across)
        start, pitch = head_at(layout[4], i, group)
        pack_blocks(v[start:], pitch, seen, dim, values)
        for head in range(group * size, (group + 1) * size):
            q_start, q_row = head_at(layout[2], i, head)
            out_start, out_row = head_at(layout[5], i, head)
            for query in range(0, queries, QUERIES):
                rows = min(np.int64(QUERIES), queries - query)
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
                    norms[i, head, :, query : query + rows],
                    rest,
                )


@parallel_kernel
def attend(q, k, v, out, layout, offset, visible, rate, key, sample_ids, norms, scratch):
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
    norms : array, shape (n, heads, 2, queries)
        Written, for `attend_backward`: the largest score of each query, and one over its sum of exponentials, or 0 if
        it sees no key.
    scratch : array, shape (parts, scratch_size(keys, dim))
        The work is cut into so many parts.
    """
    for part in prange(len(scratch)):
        _attend_part(part, q, k, v, out, layout, offset, visible, rate, key, sample_ids, norms, scratch)
