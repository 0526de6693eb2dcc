"""Settings of the suite that compares with PyTorch."""

from __future__ import annotations

import pytest
import torch

from hpdl_mpi.kernels.threads import set_threads


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Compute on one thread, here and there."""
    torch.set_num_threads(1)
    set_threads(1)
