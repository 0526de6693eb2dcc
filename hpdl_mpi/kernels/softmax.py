"""Softmax over rows, and cross-entropy fused with it."""

from __future__ import annotations

import math

from numba import prange

from hpdl_mpi.kernels.jit import inline, kernel, parallel_kernel


@inline
def _shift_and_sum(row):
    """Return the maximum of a row and the sum of exp(row - maximum): finite for any finite row."""
    top = row[0]
    for j in range(1, row.size):
        top = max(top, row[j])
    total = row.dtype.type(0.0)
    for j in range(row.size):
        total += math.exp(row[j] - top)
    return top, total


@inline
def _precedes(row, j, k):
    """Return whether class j is predicted before class k: the first of equal ones is, as in argmax."""
    return row[j] > row[k] or (j < k and row[j] == row[k])


@parallel_kernel
def softmax(x, y):
    """y[i] = softmax(x[i]); x, y (n, k)."""
    for i in prange(x.shape[0]):
        top, total = _shift_and_sum(x[i])
        for j in range(x.shape[1]):
            y[i, j] = math.exp(x[i, j] - top) / total


@parallel_kernel
def softmax_backward(dy, y, dx):
    """dx[i] = y[i] (dy[i] - <dy[i], y[i]>); all (n, k)."""
    for i in prange(y.shape[0]):
        inner = y.dtype.type(0.0)
        for j in range(y.shape[1]):
            inner += dy[i, j] * y[i, j]
        for j in range(y.shape[1]):
            dx[i, j] = y[i, j] * (dy[i, j] - inner)


@kernel
def cross_entropy(logits, targets, smoothing, scale, dlogits):
    """Sum of the cross-entropies of rows, their gradient, and how many rows are classified rightly, or nearly so.

    The target distribution is (1 - smoothing) on the target class plus smoothing spread evenly over all k classes
    (Szegedy et al., "Rethinking the Inception architecture", 2016).

    Parameters
    ----------
    logits : array, shape (n, k)
    targets : int64 array, shape (n,)
    smoothing, scale : float
        `scale` multiplies the gradient only.
    dlogits : array, shape (n, k) or (0, 0)
        Written: scale times the gradient of the sum; left alone when empty.

    Returns
    -------
    loss, correct, near, bad : float, int, int, int
        `near` counts rows whose target is among the five largest. `bad` is the first row whose target lies outside
        0..k-1, else -1; then the others mean nothing.
    """
    n, k = logits.shape
    wants_gradient = dlogits.size > 0
    even = smoothing / k
    loss = 0.0
    correct = 0
    near = 0
    for i in range(n):
        target = targets[i]
        if target < 0 or target >= k:
            return 0.0, 0, 0, i
        top, total = _shift_and_sum(logits[i])
        log_total = math.log(total)
        log_sum = 0.0
        better = 0
        for j in range(k):
            if even > 0:  # else an impossible class, of logit -inf, would turn 0 times inf into NaN
                log_sum += logits[i, j] - top - log_total
            better += _precedes(logits[i], j, target)
        loss -= (1.0 - smoothing) * (logits[i, target] - top - log_total) + even * log_sum
        if total == total:  # no class is predicted by a row with NaN
            correct += better == 0
            near += better < 5
        if wants_gradient:
            for j in range(k):
                wanted = even + (1.0 - smoothing if j == target else 0.0)
                dlogits[i, j] = scale * (math.exp(logits[i, j] - top) / total - wanted)
    return loss, correct, near, -1


@kernel
def mixed_cross_entropy(logits, targets, smoothing, scale, dlogits):
    """As `cross_entropy`, with targets of two classes each: MIXED (n,), see `kernels.mixup`.

    A row counts as right for the part of its class that is predicted, and as near for the parts that are near; a target
    of one class gives what `cross_entropy` does. `bad` is the first row whose own label is outside the classes, else
    the first whose other label is.
    """
    n, k = logits.shape
    wants_gradient = dlogits.size > 0
    even = smoothing / k
    loss = 0.0
    correct = 0.0
    near = 0.0
    for i in range(n):
        if targets[i].label < 0 or targets[i].label >= k:
            return 0.0, 0.0, 0.0, i
    for i in range(n):
        label, other, part = targets[i].label, targets[i].other, targets[i].part
        if other < 0 or other >= k:
            return 0.0, 0.0, 0.0, i
        top, total = _shift_and_sum(logits[i])
        log_total = math.log(total)
        better = 0
        better_than_other = 0
        for j in range(k):
            wanted = even
            if j == label:
                wanted += (1.0 - smoothing) * part
            if j == other:
                wanted += (1.0 - smoothing) * (1.0 - part)
            if wanted > 0:  # else an impossible class, of logit -inf, would turn 0 times inf into NaN
                loss -= wanted * (logits[i, j] - top - log_total)
            if wants_gradient:
                dlogits[i, j] = scale * (math.exp(logits[i, j] - top) / total - wanted)
            better += _precedes(logits[i], j, label)
            better_than_other += _precedes(logits[i], j, other)
        if total == total:  # no class is predicted by a row with NaN
            correct += part * (better == 0) + (1.0 - part) * (better_than_other == 0)
            near += part * (better < 5) + (1.0 - part) * (better_than_other < 5)
    return loss, correct, near, -1
