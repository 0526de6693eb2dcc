"""Settings of the suite that runs in one process."""

from __future__ import annotations

import pytest

from hpdl_mpi.kernels.jit import thread_count
from hpdl_mpi.kernels.threads import set_threads


@pytest.fixture(scope="session", autouse=True)
def _one_blas_thread() -> None:
    """Hold BLAS at one thread, as every run does."""
    set_threads(1)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Let a test begin on one thread, whatever an earlier one has chosen."""
    if thread_count() != 1:
        set_threads(1)
