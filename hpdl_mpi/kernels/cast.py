"""From stored samples to arrays for training: rows gathered from cached blocks, integers turned into floats.

These run in a loader's reader thread, beside the kernels of the training step, so they stay on one thread.
"""

from __future__ import annotations

import numpy as np

from hpdl_mpi.kernels.jit import kernel


@kernel
def copy_cached_rows(ids, starts, slots, block_length, rows, pending, num_pending, last_used, now, out):
    """Copy the samples whose block is in memory; return how many are still pending.

    Parameters
    ----------
    ids : int64 (n,)
        Samples wanted.
    starts : int64 (num_blocks + 1,)
        First sample of each block, rising.
    slots : int64 (num_blocks,)
        Slot of the cache that holds a block, or -1.
    rows : uint8 (num_slots * block_length, row_bytes)
        The cache: row r of slot s is at ``s * block_length + r``.
    pending : int64 (n,)
        The first `num_pending` entries are positions in `ids` still to be copied; those that remain so are moved to
        the front, in order.
    last_used : int64 (num_slots,)
        Set to `now` for each slot that served a sample.
    out : uint8 (n, row_bytes)
        Receives sample ``ids[i]`` in row i.
    """
    kept = 0
    for p in range(num_pending):
        i = pending[p]
        block, end = 0, starts.size - 1  # by hand, because searchsorted takes half a second to compile
        while end - block > 1:
            middle = (block + end) // 2
            if starts[middle] <= ids[i]:
                block = middle
            else:
                end = middle
        slot = slots[block]
        if slot < 0:
            pending[kept] = i
            kept += 1
        else:
            last_used[slot] = now
            row = slot * block_length + ids[i] - starts[block]
            for j in range(out.shape[1]):
                out[i, j] = rows[row, j]
    return kept


@kernel
def affine(raw, scale, mean, inverse_std, out):
    """out = (raw * scale - mean) / std, computed in float64; raw, out (n, size); mean, inverse_std float64 (size,)."""
    for i in range(raw.shape[0]):
        for j in range(raw.shape[1]):
            out[i, j] = (np.float64(raw[i, j]) * scale - mean[j]) * inverse_std[j]


@kernel
def affine_channels_last(raw, scale, mean, inverse_std, out):
    """`affine` from raw (n, channels, pixels) to out (n, pixels, channels); mean, inverse_std float64 (channels,)."""
    for i in range(raw.shape[0]):
        for pixel in range(raw.shape[2]):
            for channel in range(raw.shape[1]):
                value = np.float64(raw[i, channel, pixel]) * scale - mean[channel]
                out[i, pixel, channel] = value * inverse_std[channel]


@kernel
def affine_inverse(values, scale, mean, std):
    """values = (values * std + mean) / scale in place; values (n, size); mean, std float64 (size,)."""
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            values[i, j] = (np.float64(values[i, j]) * std[j] + mean[j]) / scale
