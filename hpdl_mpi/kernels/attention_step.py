"""Attention of one query in each sample, as when a sequence is made step by step: two passes over its keys and values.

`kernels.attention` packs keys and values for blocks of queries. A single query meets each of them once, where they lie.
"""

from __future__ import annotations

import math

from numba import prange

from hpdl_mpi.kernels.attention_blocks import LEAST
from hpdl_mpi.kernels.elementary import exp
from hpdl_mpi.kernels.jit import kernel, parallel_kernel
from hpdl_mpi.kernels.rows import inner_product, largest


@kernel
def _add_scaled(factor, source, target):
    """target += factor source; flat arrays."""
    for c in range(target.size):
        target[c] += factor * source[c]


@kernel
def _softmax(scores, visible):
    """Put softmax weights in place of scores; zeros where a key is not visible, or none is."""
    zero = scores.dtype.type(0)
    for t in range(visible.size):
        if not visible[t] > 0:
            scores[t] = -math.inf
    top = largest(scores, scores.dtype.type(LEAST))
    total = zero
    for t in range(scores.size):
        weight = exp(scores[t] - top)
        scores[t] = weight
        total += weight
    factor = 1 / total if total > 0 else total  # what sees nothing is 0; a NaN stays one
    for t in range(scores.size):
        scores[t] *= factor


@parallel_kernel
def attend_one(queries, memory, keys, groups, visible, scores, y):
    """y = softmax(q k^T / sqrt(dim)) v, of each sample and head.

    Parameters
    ----------
    queries : array, shape (n, heads dim or more)
        Of all heads, in front.
    memory : array, shape (n, keys or more, 2 groups dim)
        Keys of all groups and then their values, of each step; head h has those of group h groups // heads.
    keys : int
        Steps of `memory` that are looked at, at least 1.
    groups : int
    visible : array, shape (n, keys) or (n, 0)
        A key is hidden where it is not above 0. The output of a query that sees nothing is 0.
    scores : array, shape (n, heads, keys or more)
        Scratch.
    y : array, shape (n, heads dim)
        Written.
    """
    n, heads = scores.shape[:2]
    dim = y.shape[1] // heads
    size = heads // groups
    scale = y.dtype.type(1 / math.sqrt(dim))
    for task in prange(n * groups):
        i, group = task // groups, task % groups
        first, behind = group * dim, (groups + group) * dim
        for t in range(keys):
            key = memory[i, t, first : first + dim]
            for head in range(group * size, (group + 1) * size):
                scores[i, head, t] = scale * inner_product(queries[i, head * dim : (head + 1) * dim], key)
        for head in range(group * size, (group + 1) * size):
            _softmax(scores[i, head, :keys], visible[i])
            y[i, head * dim : (head + 1) * dim] = 0
        for t in range(keys):
            value = memory[i, t, behind : behind + dim]
            for head in range(group * size, (group + 1) * size):
                _add_scaled(scores[i, head, t], value, y[i, head * dim : (head + 1) * dim])
