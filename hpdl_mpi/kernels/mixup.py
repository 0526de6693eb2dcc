"""Mixup (Zhang, Cisse, Dauphin and Lopez-Paz, 2018): samples and targets mixed with those of a partner.

The partner of a slot of the global batch is its neighbour, 0 and 1, 2 and 3 and so on: the order is drawn anew in every
epoch, so that is a random sample. Where a rank's share begins or ends between the two, the rank reads the other too.
"""

from __future__ import annotations

import math

import numpy as np

from hpdl_mpi.kernels.jit import exact_kernel
from hpdl_mpi.kernels.random import TO_UNIT, philox

MIXED = np.dtype([("label", np.int64), ("other", np.int64), ("part", np.float64)])
"""A target of two classes: `part` of the first, the rest of the other."""

_POSITION = np.uint64(64)
"""Of the first draw in the stream of a sample; those of `kernels.augment` lie before it."""

_TRIES = 64


@exact_kernel
def draw_parts(key, ids, alpha, parts):
    """Draw from Beta(alpha, alpha) for each id.

    By Jöhnk (1964), with logarithms, since powers of small numbers may be zero. A try fails half the time at most.

    Parameters
    ----------
    key : uint64
        Of the seed and the epoch; see `kernels.random.derive_key`.
    ids : int64 array, shape (n,)
        Sample ids.
    alpha : float
        Above 0, at most 1.
    parts : float64 array, shape (n,)
        Written: 0 to 1.
    """
    for i in range(ids.size):
        parts[i] = 0.5
        for attempt in range(_TRIES):
            words = philox(key, np.uint64(ids[i]), _POSITION + np.uint64(attempt))
            u = math.log((np.float64(words[0]) + 1.0) * TO_UNIT) / alpha
            v = math.log((np.float64(words[1]) + 1.0) * TO_UNIT) / alpha
            if math.exp(u) + math.exp(v) <= 1.0:
                parts[i] = 1.0 / (1.0 + math.exp(v - u))
                break


@exact_kernel
def pair_up(global_ids, first, last, ids, partners):
    """List a rank's samples and those that they are mixed with.

    Parameters
    ----------
    global_ids : int64 array, shape (size,)
        Of the whole batch. An odd last one is its own partner.
    first, last : int
        The rank's slots.
    ids : int64 array, shape (last - first + 2,)
        Written: the rank's samples, and behind them partners that are not its own.
    partners : int64 array, shape (last - first,)
        Written: the place of each sample's partner in `ids`.

    Returns
    -------
    int
        How many ids there are.
    """
    count = last - first
    for slot in range(first, last):
        ids[slot - first] = global_ids[slot]
        other = slot ^ 1
        if other >= global_ids.size:
            other = slot
        if first <= other < last:
            partners[slot - first] = other - first
        else:
            partners[slot - first] = count
            ids[count] = global_ids[other]
            count += 1
    return count


@exact_kernel
def mix(x, partners, parts):
    """x[i] = parts[i] x[i] + (1 - parts[i]) x[partners[i]] in place, from what was there before.

    Parameters
    ----------
    x : float array, shape (m, size)
        m >= n: what lies behind the first n is read alone.
    partners : int64 array, shape (n,)
        Partners of each other, themselves, or one of the rows behind.
    parts : float64 array, shape (n,)
    """
    n = partners.size
    for i in range(n):
        j, one = partners[i], parts[i]
        if j >= n:
            for k in range(x.shape[1]):
                x[i, k] = one * x[i, k] + (1.0 - one) * x[j, k]
        elif j > i:
            other = parts[j]
            for k in range(x.shape[1]):
                a, b = x[i, k], x[j, k]
                x[i, k] = one * a + (1.0 - one) * b
                x[j, k] = other * b + (1.0 - other) * a


@exact_kernel
def mix_labels(labels, partners, parts, out):
    """Write both classes of each sample.

    Parameters
    ----------
    labels : int64 array, shape (m,)
        Of the samples, and behind them of partners.
    partners, parts
        See `mix`.
    out : MIXED array, shape (n,)
        Written.
    """
    for i in range(partners.size):
        out[i].label = labels[i]
        out[i].other = labels[partners[i]]
        out[i].part = parts[i] if partners[i] != i else 1.0
