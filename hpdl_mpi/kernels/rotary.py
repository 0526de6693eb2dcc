"""Rotation of pairs of numbers by angles that grow with their place (Su et al., "RoFormer", 2021)."""

from __future__ import annotations

from numba import prange

from hpdl_mpi.kernels.jit import parallel_kernel


@parallel_kernel
def rotate(x, cosines, sines, heads, y):
    """Rotate the first heads of each step, and copy what is behind them.

    Number c of a head makes a pair with number c + dim / 2, as in GPT-NeoX and LLaMA.

    Parameters
    ----------
    x : array, shape (n, steps, width)
    cosines, sines : array, shape (steps, dim / 2)
        Of the angles.
    heads : int
        heads dim is at most the width.
    y : array, shape (n, steps, width)
        It may be x.
    """
    n, steps, width = x.shape
    half = cosines.shape[1]
    for row in prange(n * steps):
        t = row % steps
        source, target, cosine, sine = x[row // steps, t], y[row // steps, t], cosines[t], sines[t]
        for head in range(heads):
            first, second = source[2 * head * half :], source[(2 * head + 1) * half :]
            rotated, other = target[2 * head * half :], target[(2 * head + 1) * half :]
            for c in range(half):
                a, b = first[c], second[c]
                rotated[c] = a * cosine[c] - b * sine[c]
                other[c] = b * cosine[c] + a * sine[c]
        for c in range(2 * heads * half, width):
            target[c] = source[c]
