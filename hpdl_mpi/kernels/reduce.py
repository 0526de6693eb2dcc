"""Sums of arrays that came from different ranks."""

from __future__ import annotations

from numba import prange

from hpdl_mpi.kernels.jit import parallel_kernel


@parallel_kernel
def add_into(total, term):
    """total += term; flat arrays of one size and dtype."""
    for i in prange(total.size):
        total[i] += term[i]
