"""Softmax over rows, and cross-entropy fused with it."""

from __future__ import annotations

import math

from numba import prange

from hpdl_mpi.kernels.elementary import exp
from hpdl_mpi.kernels.elementwise import lies_at
from hpdl_mpi.kernels.jit import inline, kernel, parallel_kernel
from hpdl_mpi.kernels.rows import copy_row, largest


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


LOSS_ROWS = 32
"""Rows whose sums are added up alone, before they are added to the others': so no sum depends on the threads."""

LOSS_SUMS = 5
"""What a block of rows gives: the loss, the rows that count, those classified rightly or nearly so, and a bad one."""


@inline
def _count_before(row, target):
    """Return how many classes are predicted before the target: the first of equal ones is, as in argmax."""
    before, after, value = row[:target], row[target + 1 :], row[target]
    count = 0
    for j in range(before.size):
        count += before[j] >= value
    for j in range(after.size):
        count += after[j] > value
    return count


@kernel
def _sum_exponentials(row, top):
    """Return the sum of exp(row - top)."""
    total = row.dtype.type(0)
    for j in range(row.size):
        total += exp(row[j] - top)
    return total


@kernel
def _exponentials(row, top):
    """Put exp(row - top) in place of a row; return the sum."""
    total = row.dtype.type(0)
    for j in range(row.size):
        value = exp(row[j] - top)
        row[j] = value
        total += value
    return total


@kernel
def _row_loss(logits, target, other, part, smoothing, scale, dlogits):
    """Return the loss of a row, and how many classes are predicted before each of its two targets; write the gradient.

    `part` is that of the first target, and what is left that of the other.
    """
    count = logits.size
    even, own = smoothing / count, 1.0 - smoothing
    least = logits.dtype.type(-math.inf)
    top, value, other_value = largest(logits, least), logits[target], logits[other]
    better, better_than_other = _count_before(logits, target), _count_before(logits, other)
    distances = 0.0
    if even > 0:  # else an impossible class, of logit -inf, would turn 0 times inf into NaN
        for j in range(count):
            distances += logits[j] - top
    if dlogits.size == 0:
        total = _sum_exponentials(logits, top)
    else:
        if not lies_at(logits, dlogits):
            copy_row(logits, dlogits)
        total = _exponentials(dlogits, top)
    log_total = math.log(total)
    loss = -own * part * (value - top - log_total) - even * (distances - count * log_total)
    if part < 1:
        loss -= own * (1.0 - part) * (other_value - top - log_total)
    factor, less = logits.dtype.type(scale / total), logits.dtype.type(scale * even)
    for j in range(dlogits.size):
        dlogits[j] = dlogits[j] * factor - less
    if dlogits.size > 0:
        dlogits[target] -= scale * own * part
        dlogits[other] -= scale * own * (1.0 - part)
    if total != total:  # no class is predicted by a row with NaN
        better, better_than_other = count, count
    return loss, better, better_than_other


@parallel_kernel
def cross_entropy(logits, targets, ignored, smoothing, scale, dlogits, sums):
    """Sum the cross-entropies of rows, write their gradient, and count the rows that are classified rightly.

    The target distribution is (1 - smoothing) on the target class plus smoothing spread evenly over all k classes
    (Szegedy et al., "Rethinking the Inception architecture", 2016). A row is read while it is in the cache, whatever
    the number of classes: for its maximum, its exponentials, and the gradient, which may take its place.

    Parameters
    ----------
    logits : array, shape (n, k)
    targets : int64 array, shape (n,)
    ignored : int64
        A target that does not count; its row's gradient is 0.
    smoothing, scale : float
        `scale` multiplies the gradient only.
    dlogits : array, shape (n, k) or (0, k)
        Written: scale times the gradient of the sum; left alone when empty. It may be `logits`.
    sums : float64 array, shape (-(-n // LOSS_ROWS), LOSS_SUMS)
        Written, of each block of rows: the loss, how many rows count, of how many the target is the largest, or among
        the five largest, and the first whose target is neither 0..k-1 nor ignored, else -1; then the others mean
        nothing.
    """
    n, k = logits.shape
    wants_gradient = len(dlogits) > 0
    for block in prange(len(sums)):
        loss, counted, correct, near, bad = 0.0, 0, 0, 0, -1
        for i in range(block * LOSS_ROWS, min(n, (block + 1) * LOSS_ROWS)):
            target = targets[i]
            gradient = dlogits[i] if wants_gradient else logits[i, :0]
            if target == ignored:
                for j in range(gradient.size):
                    gradient[j] = 0
            elif target < 0 or target >= k:
                bad = i if bad < 0 else bad
            else:
                row_loss, better, _ = _row_loss(logits[i], target, target, 1.0, smoothing, scale, gradient)
                loss += row_loss
                counted += 1
                correct += better == 0
                near += better < 5
        sums[block, 0], sums[block, 1], sums[block, 2], sums[block, 3], sums[block, 4] = (
            loss,
            counted,
            correct,
            near,
            bad,
        )


@kernel
def mixed_cross_entropy(logits, targets, smoothing, scale, dlogits):
    """As `cross_entropy`, with targets of two classes each: MIXED (n,), see `kernels.mixup`.

    Returns the loss, how many rows are right and nearly so, and the first bad one. A row counts as right for the part
    of its class that is predicted, and as near for the parts that are near; a target of one class gives what
    `cross_entropy` does. `bad` is the first row whose own label is outside the classes, else the first whose other
    label is.
    """
    n, k = logits.shape
    wants_gradient = len(dlogits) > 0
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
        gradient = dlogits[i] if wants_gradient else logits[i, :0]
        found = _row_loss(logits[i], label, other, part, smoothing, scale, gradient)
        loss += found[0]
        correct += part * (found[1] == 0) + (1.0 - part) * (found[2] == 0)
        near += part * (found[1] < 5) + (1.0 - part) * (found[2] < 5)
    return loss, correct, near, -1
