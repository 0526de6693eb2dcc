"""The gradients of attention in blocks; see `kernels.attention`."""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from hpdl_mpi.kernels.attention_blocks import (
    KEYS,
    PITCH,
    QUERIES,
    drop_block,
    filled,
    head_at,
    hide,
    multiply_causal,
    multiply_causal_across,
    num_seen,
    pack_blocks,
    padded_size,
    row_limit,
    shares,
    sizes_of,
    whole_panels,
    zero_rows,
)
from hpdl_mpi.kernels.jit import kernel, parallel_kernel
from hpdl_mpi.kernels.panels import multiply_panels, pack_panels
from hpdl_mpi.kernels.rows import inner_product
from hpdl_mpi.kernels.vector import ROWS


@kernel
def _remake_weights(scores, size, query, seen, scale, visible, norms):
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
    norms : array, shape (2, rows)
        Of `attend`.
    """
    rows, columns, first = size
    tops, parts = norms[0], norms[1]
    for r in range(rows):
        row = scores[r * PITCH : r * PITCH + filled(columns)]
        count = max(0, min(columns, row_limit(query + r, seen[0], seen[1]) - first))
        if visible.size > 0:
            hide(row[:count], first, visible)
        shares(row, count, scale, tops[r], parts[r])


@kernel
def _through_softmax(weights, gradients, size, scale, along):
    """Put the gradient of scores in place of that of weights: weights (gradients - along) scale, row by row."""
    for r in range(size[0]):
        row, gradient = weights[r * PITCH : r * PITCH + size[1]], gradients[r * PITCH : r * PITCH + size[1]]
        less = along[r]
        for c in range(row.size):
            gradient[c] = row[c] * (gradient[c] - less) * scale


@kernel
def _backward_block(arrays, places, block, seen, dim, scale, panels, visible, drop, norms, scratch):
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
    norms : array, shape (2, rows)
    scratch : flat array
    """
    (query, rows), (keys, offset), (keys_across, values_across, keys_down) = block, seen, panels
    q, out, dout, dq, dk, dv = arrays
    q_at, out_at, k_at, v_at = places
    padded = -(-dim // 16) * 16
    plane, deep = QUERIES * PITCH, QUERIES * padded
    weights, gradients, along = scratch[:plane], scratch[plane : 2 * plane], scratch[2 * plane : 2 * plane + QUERIES]
    q_panel = scratch[2 * plane + QUERIES : 2 * plane + QUERIES + deep]
    dout_panel = scratch[2 * plane + QUERIES + deep : 2 * plane + QUERIES + 2 * deep]
    all_rows, all_columns = (np.int64(0), rows), (np.int64(0), dim)
    pack_panels(q[q_at[0] :], q_at[1], False, all_rows, all_columns, q_panel)
    pack_panels(dout[out_at[0] :], out_at[1], False, all_rows, all_columns, dout_panel)
    for r in range(rows):
        result = out[out_at[0] + r * out_at[1] : out_at[0] + r * out_at[1] + dim]
        gradient = dout[out_at[0] + r * out_at[1] : out_at[0] + r * out_at[1] + dim]
        along[r] = inner_product(result, gradient)
    most = row_limit(query + rows - 1, keys, offset)
    if most == 0:
        zero_rows(dq, q_at[0], q_at[1], rows, dim)
    flat = np.int64(0), np.int64(PITCH)
    for first in range(0, most, KEYS):
        present = min(np.int64(KEYS), keys - first)
        columns = whole_panels(most - first, present, q.itemsize)
        left = q_at[0], q_at[1], np.int64(1), ROWS * q_at[1]
        multiply_panels(dim, q, left, keys_across[first * dim :], weights, flat, (rows, columns), False)
        _remake_weights(weights, (rows, columns, first), query, seen, scale, visible, norms)
        begins = row_limit(query, keys, offset) - first
        target = v_at[0] + first * v_at[1], v_at[1]
        if drop[0] > 0:
            drop_block(weights, gradients, (rows, columns, first), query, drop)
            multiply_causal_across(gradients, rows, dout_panel, dv, target, (columns, dim), begins)
        else:
            multiply_causal_across(weights, rows, dout_panel, dv, target, (columns, dim), begins)
        left = out_at[0], out_at[1], np.int64(1), ROWS * out_at[1]
        multiply_panels(dim, dout, left, values_across[first * dim :], gradients, flat, (rows, columns), False)
        if drop[0] > 0:
            drop_block(gradients, gradients, (rows, columns, first), query, drop)
        _through_softmax(weights, gradients, (rows, columns), scale, along)
        below = keys_down[first * padded :]
        multiply_causal(gradients, columns, present, below, dq, q_at, (rows, dim), begins, first > 0)
        target = k_at[0] + first * k_at[1], k_at[1]
        multiply_causal_across(gradients, rows, q_panel, dk, target, (columns, dim), begins)


@kernel
def _backward_part(
    part, q, k, v, out, dout, dq, dk, dv, layout, offset, visible, rate, key, sample_ids, norms, scratch
):
    """Do one of `len(scratch)` parts of `attend_backward`."""
    n, queries, keys, heads, groups, dim = sizes_of(layout)
    scale = out.dtype.type(1 / math.sqrt(dim))
    tasks, parts, size = n * groups, len(scratch), heads // groups
    padded = padded_size(keys, dim)
    keys_across, values_across = scratch[part, :padded], scratch[part, padded : 2 * padded]
    keys_down, rest = scratch[part, 2 * padded : 3 * padded], scratch[part, 3 * padded :]
    for task in range(part * tasks // parts, (part + 1) * tasks // parts):
        i, group = task // groups, task % groups
        seen = num_seen(visible[i], keys)
        k_at, v_at = head_at(layout[3], i, group), head_at(layout[4], i, group)
        pack_panels(k[k_at[0] :], k_at[1], True, (np.int64(0), dim), (np.int64(0), seen), keys_across)
        pack_blocks(k[k_at[0] :], k_at[1], seen, dim, keys_down)
        pack_panels(v[v_at[0] :], v_at[1], True, (np.int64(0), dim), (np.int64(0), seen), values_across)
        zero_rows(dk, k_at[0], k_at[1], keys, dim)
        zero_rows(dv, v_at[0], v_at[1], keys, dim)
        for head in range(group * size, (group + 1) * size):
            q_start, q_row = head_at(layout[2], i, head)
            out_start, out_row = head_at(layout[5], i, head)
            for query in range(0, queries, QUERIES):
                rows = min(np.int64(QUERIES), queries - query)
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
                    norms[i, head, :, query : query + rows],
                    rest,
                )


@parallel_kernel
def attend_backward(q, k, v, out, dout, dq, dk, dv, layout, offset, visible, rate, key, sample_ids, norms, scratch):
    """Write the gradients of what `attend` took, from that of its output.

    Parameters
    ----------
    q, k, v, out : flat array
    dout, dq, dk, dv : flat array
        They lie like `out`, `q`, `k` and `v`; the last three are written.
    layout, offset, visible, rate, key, sample_ids
        As `attend` takes them.
    norms : array, shape (n, heads, 2, queries)
        Of `attend`.
    scratch : array, shape (parts, scratch_size(keys, dim))
    """
    for part in prange(len(scratch)):
        _backward_part(
            part, q, k, v, out, dout, dq, dk, dv, layout, offset, visible, rate, key, sample_ids, norms, scratch
        )
