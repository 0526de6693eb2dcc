"""What compressed sums of gradients need: orthogonal columns, and the largest elements of an array."""

from __future__ import annotations

import math

from hpdl_mpi.kernels.jit import exact_kernel, kernel


@exact_kernel
def orthonormalize(matrix):
    """Make the columns of a matrix (rows, rank) orthonormal, in place (modified Gram-Schmidt).

    A column that is one of those before it up to rounding becomes zero. Rounded as written, on one thread, so that all
    ranks get the same bits.
    """
    rows, rank = matrix.shape
    for j in range(rank):
        before = 0.0
        for p in range(rows):
            before += matrix[p, j] * matrix[p, j]
        for i in range(j):
            product = 0.0
            for p in range(rows):
                product += matrix[p, i] * matrix[p, j]
            for p in range(rows):
                matrix[p, j] -= product * matrix[p, i]
        square = 0.0
        for p in range(rows):
            square += matrix[p, j] * matrix[p, j]
        # What is left of a dependent column is rounding: some 1e-7 of its length, in single precision.
        scale = 1.0 / math.sqrt(square) if square > 1e-10 * before else 0.0
        for p in range(rows):
            matrix[p, j] *= scale


@kernel
def take_largest(values, threshold, places, taken):
    """Move as many of the elements whose size is `threshold` or more to `taken` as it has room for, and zero them.

    Parameters
    ----------
    values : array, flat
        Those taken are zero afterwards.
    threshold : float
        No more elements than there is room for are larger.
    places : int array, shape (k,)
        Written: where the taken ones were, those larger first, each kind in order.
    taken : array, shape (k,)
        Written.
    """
    count = 0
    for i in range(values.size):
        if abs(values[i]) > threshold and count < taken.size:
            places[count] = i
            count += 1
    for i in range(values.size):
        if abs(values[i]) == threshold and count < taken.size:
            places[count] = i
            count += 1
    for k in range(count):
        taken[k] = values[places[k]]
        values[places[k]] = 0
    for k in range(count, taken.size):  # some are no numbers, and that shall be seen
        places[k] = k
        taken[k] = math.nan


@kernel
def add_at(total, places, values):
    """total[places] += values; places differ."""
    for i in range(values.size):
        total[places[i]] += values[i]
