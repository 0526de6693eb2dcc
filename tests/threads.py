"""Kernels on two threads, where Numba has as many."""

from __future__ import annotations

import pytest

from hpdl_mpi.kernels.threads import max_threads

needs_two_threads = pytest.mark.skipif(max_threads() < 2, reason="Numba has one thread; NUMBA_NUM_THREADS=2 sets two")
