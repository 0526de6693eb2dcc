"""A rank's replica of the model: what it refuses to read, and to be."""

from __future__ import annotations

import numpy as np
import pytest

from hpdl_mpi import nn, optim
from hpdl_mpi.base.errors import InputError
from hpdl_mpi.parallel import Replica

SAMPLES = np.ones((4, 6), np.float32)


@pytest.fixture
def replica() -> Replica:
    return Replica(nn.Linear(2), (3,), optim.SGD(0.1), dtype=np.float32, seed=0)


@pytest.mark.parametrize(
    "inputs",
    [SAMPLES, SAMPLES[:, :3].astype(np.float64), SAMPLES[:, ::2], np.asfortranarray(SAMPLES[:, :3])],
    ids=["other shape", "other dtype", "every other column", "Fortran order"],
)
def test_samples_that_kernels_would_misread_are_refused(replica: Replica, inputs: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"inputs: the model cannot take these samples"):
        replica.predict(inputs, np.arange(4))
    assert replica.pool.bytes_live == 0


def test_a_model_that_does_not_fit_into_memory_is_refused_before_any_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def allocated(*_: object) -> None:
        raise AssertionError("memory was asked for")

    monkeypatch.setattr(nn.Layout, "allocate", allocated)
    # (2^24 * 2^20 weights + 2^24 biases) * 4 bytes, four times: parameters, gradients and Adam's two slots
    expected = f"expected {(2**44 + 2**24) * 16:,} bytes"
    with pytest.raises(InputError, match=rf"the model's parameters, gradients and optimizer state\. .*{expected}"):
        Replica(nn.Linear(2**24), (2**20,), optim.Adam(0.1), dtype=np.float32, seed=0)
