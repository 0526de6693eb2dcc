"""Kernels of several groups of channels side by side: each is zero where the channels of the other groups are.

Groups of the one form, (k, kh, kw, c), go `together` by so many, which have together c channels in the other.
"""

from __future__ import annotations

from hpdl_mpi.kernels.jit import inline, kernel


@inline
def _first_channel(number, kernels, groups, together, channels):
    """Return where the channels begin that belong to one of the kernels."""
    return number // (kernels // groups) % together * channels


@kernel
def join(weight, groups, together, joined):
    """Write the joined form.

    Parameters
    ----------
    weight : array, shape (k, kh, kw, c)
    groups, together : int
    joined : array, shape (k, kh, kw, together c)
    """
    kernels, height, width, channels = weight.shape
    joined[:] = 0
    for number in range(kernels):
        first = _first_channel(number, kernels, groups, together, channels)
        for i in range(height):
            for j in range(width):
                for c in range(channels):
                    joined[number, i, j, first + c] = weight[number, i, j, c]


@kernel
def add_own(joined, groups, together, weight):
    """Add to the one form what the joined form has of it; arrays as in `join`."""
    kernels, height, width, channels = weight.shape
    for number in range(kernels):
        first = _first_channel(number, kernels, groups, together, channels)
        for i in range(height):
            for j in range(width):
                for c in range(channels):
                    weight[number, i, j, c] += joined[number, i, j, first + c]
