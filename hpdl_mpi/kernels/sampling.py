"""The choice of the next token by its logits: the likeliest, a draw, or the best continuations of several beams."""

from __future__ import annotations

import math

import numpy as np

from hpdl_mpi.kernels.jit import inline, kernel
from hpdl_mpi.kernels.random import philox

UNCLEAR = -1
"""In place of a token, where logits are not numbers, or the largest is infinite."""


@kernel
def _largest(row):
    """Return the place of the largest element, the first of equal ones, or `UNCLEAR`."""
    best = np.int64(0)
    for v in range(row.size):
        if row[v] != row[v]:
            return np.int64(UNCLEAR)
        if row[v] > row[best]:
            best = np.int64(v)
    return best if abs(row[best]) < math.inf else np.int64(UNCLEAR)


@kernel
def likeliest(logits, tokens):
    """tokens[i] = the place of the largest of ``logits[i]``; (n, v) and int64 (n,)."""
    for i in range(len(logits)):
        tokens[i] = _largest(logits[i])


@inline
def _before(row, a, b):
    """Return whether place a comes before place b: the larger logit, and of equal ones the first."""
    return row[a] > row[b] or (row[a] == row[b] and a < b)


@kernel
def _sink(row, heap, place, size):
    """Let an element of a heap go down to where it belongs; the first of `size` is the one before all others."""
    while 2 * place + 1 < size:
        child = 2 * place + 1
        if child + 1 < size and _before(row, heap[child + 1], heap[child]):
            child += 1
        if not _before(row, heap[child], heap[place]):
            return
        heap[place], heap[child] = heap[child], heap[place]
        place = child


@kernel
def _pop(row, heap, size):
    """Take the first element off a heap, put it behind the others, and return it."""
    heap[0], heap[size - 1] = heap[size - 1], heap[0]
    _sink(row, heap, np.int64(0), size - 1)
    return heap[size - 1]


@kernel
def _uniform(key, stream, position):
    """Return a draw from [0, 1) of 53 bits."""
    high, low, _, _ = philox(key, np.uint64(stream), np.uint64(position))
    return np.float64((high << np.uint64(21)) ^ (low >> np.uint64(11))) * 2.0**-53


@kernel
def _weight(row, place, top, scale):
    return math.exp(scale * (np.float64(row[place]) - top))


@kernel
def _draw(row, scale, top_k, top_p, uniform, heap):
    """Return a token for a uniform number; see `draw`."""
    best = _largest(row)
    if best == UNCLEAR:
        return best
    top, size = np.float64(row[best]), row.size
    count = top_k if 0 < top_k < size else size
    total = 0.0
    if count == size:
        for v in range(size):
            total += _weight(row, v, top, scale)
    if count == size and top_p >= 1.0:
        mark, passed, last = uniform * total, 0.0, best
        for v in range(size):
            weight = _weight(row, v, top, scale)
            passed += weight
            last = np.int64(v) if weight > 0 else last
            if passed > mark:
                return last
        return last
    for v in range(size):
        heap[v] = v
    for start in range(size // 2 - 1, -1, -1):
        _sink(row, heap, np.int64(start), size)
    popped, kept = 0, 0.0
    if count < size:
        while popped < count:
            total += _weight(row, _pop(row, heap, size - popped), top, scale)
            popped += 1
        popped = 0
    while popped < count and (popped == 0 or kept < top_p * total):
        if count == size:
            _pop(row, heap, size - popped)
        kept += _weight(row, heap[size - 1 - popped], top, scale)
        popped += 1
    mark, passed = uniform * kept, 0.0
    for place in range(popped):
        passed += _weight(row, heap[size - 1 - place], top, scale)
        if passed > mark:
            return heap[size - 1 - place]
    return heap[size - popped]


@kernel
def draw(logits, temperature, top_k, top_p, key, streams, positions, heap, tokens):
    """Draw a token for each row by softmax(logits / temperature), of the likeliest ones alone.

    Parameters
    ----------
    logits : array, shape (n, v)
    temperature : float
        Above 0.
    top_k : int
        Of how many tokens one is drawn; 0 for all (Fan, Lewis and Dauphin, 2018).
    top_p : float
        Above 0. One of the fewest of these, likeliest first, whose probabilities add up to it or more: the nucleus
        (Holtzman et al., "The curious case of neural text degeneration", 2020).
    key : uint64
    streams, positions : int64 array, shape (n,)
        The draw is addressed by both, see `kernels.random`.
    heap : int64 array, shape (v,)
        Scratch.
    tokens : int64 array, shape (n,)
        Written.
    """
    for i in range(len(logits)):
        uniform = _uniform(key, streams[i], positions[i])
        tokens[i] = _draw(logits[i], 1.0 / temperature, top_k, top_p, uniform, heap)


@kernel
def best_continuations(logits, scores, best, rows, tokens):
    """Find the likeliest of all tokens that may follow some sequences, likeliest first.

    Parameters
    ----------
    logits : array, shape (n, v)
    scores : float64 array, shape (n,)
        The logarithms of the sequences' probabilities.
    best : float64 array, shape (k,)
        Written: the logarithms of probabilities with the token; of equal ones the first come first. What there is
        none for is -inf.
    rows, tokens : int64 array, shape (k,)
        Written: the sequence, and the token; `UNCLEAR` where there is none, and at all places where logits are not
        numbers.
    """
    best[:] = -math.inf
    rows[:] = UNCLEAR
    tokens[:] = UNCLEAR
    last = best.size - 1
    for i in range(len(logits)):
        row = logits[i]
        first = _largest(row)
        if first == UNCLEAR:
            tokens[:] = UNCLEAR
            return
        top, total = np.float64(row[first]), 0.0
        for v in range(row.size):
            total += math.exp(row[v] - top)
        less = scores[i] - top - math.log(total)
        for v in range(row.size):
            score = row[v] + less
            if score > best[last]:
                place = last
                while place > 0 and score > best[place - 1]:
                    best[place], rows[place], tokens[place] = best[place - 1], rows[place - 1], tokens[place - 1]
                    place -= 1
                best[place], rows[place], tokens[place] = score, i, v
