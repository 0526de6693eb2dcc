"""Threads, set in one place: kernels share the work among them."""

from __future__ import annotations

import os

import numba
import threadpoolctl

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.kernels import jit


def available_cores() -> set[int]:
    """Return the numbers of the cores that this process may run on."""
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def max_threads() -> int:
    """Return the largest number of threads that kernels can use: this process's cores, or ``NUMBA_NUM_THREADS``."""
    return numba.config.NUMBA_NUM_THREADS


def set_threads(count: int) -> None:
    """Let this Python thread compute on `count` threads; others, which do something beside it, compute alone.

    NumPy's BLAS, which no kernel uses, is held at one thread: a user's own code must not crowd the cores.
    """
    if not 1 <= count <= max_threads():
        raise InputError(
            "not a possible number of threads",
            where="parallel.threads",
            found=count,
            expected=f"1 to {max_threads()}, the cores of this process or NUMBA_NUM_THREADS",
            remedy="ask the launcher for more cores per rank, or lower parallel.threads",
        )
    threadpoolctl.threadpool_limits(1, "blas")
    jit.use_threads(count)
