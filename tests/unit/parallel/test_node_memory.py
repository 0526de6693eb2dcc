"""Which ranks have their gradients in memory that they share."""

from __future__ import annotations

import numpy as np
import pytest

from hpdl_mpi import nn, optim
from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import Communicator, run_threads
from hpdl_mpi.comm.threads import ThreadCommunicator
from hpdl_mpi.parallel import ProcessGrid, Replica, TrainingStep


def algorithms(comm: Communicator, **settings: str) -> set[str]:
    """Return what sums the gradients of a step with these settings."""
    replica = Replica(nn.Linear(3), (4,), optim.SGD(0.1), dtype="float32", seed=0)
    before = replica.params.copy()
    step = TrainingStep(replica, nn.CrossEntropy(), ProcessGrid(comm, {"pp": 1, "dp": comm.size}), **settings)
    np.testing.assert_array_equal(replica.params, before)
    assert not replica.grads.any()
    step.free()
    return {*step.algorithms}


@pytest.mark.parametrize(
    ("nodes", "settings", "expected"),
    [
        ((0, 0, 0), {}, {"window"}),
        ((0, 0, 0), {"compression": "bf16"}, {"window"}),
        ((0, 0, 0), {"algorithm": "ring"}, {"ring"}),
        ((0, 0, 1), {}, {"recursive_doubling"}),
        ((0, 0, 1, 1), {}, {"recursive_doubling"}),
        ((0, 1, 2), {}, {"recursive_doubling"}),
        ((0,), {}, set()),
    ],
)
def test_ranks_of_one_machine_share_gradients_if_nothing_else_is_asked_for(nodes, settings, expected):
    found = run_threads(len(nodes), lambda comm: algorithms(comm, shared_memory="auto", **settings), nodes=nodes)
    assert found == [expected] * len(nodes)


def test_where_memory_is_short_they_do_not_unless_they_were_to(monkeypatch):
    monkeypatch.setattr(ThreadCommunicator, "shareable_bytes", lambda self: 0)
    assert run_threads(2, lambda comm: algorithms(comm, shared_memory="auto")) == [{"ring"}] * 2
    with pytest.raises(InputError, match=r"/dev/shm: too little memory that ranks can share.*--shm-size"):
        run_threads(2, lambda comm: algorithms(comm, shared_memory="gradients"))
