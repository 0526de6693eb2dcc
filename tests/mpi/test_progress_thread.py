"""Sums that a thread moves along have the bits of those that only the rank itself looks after."""

from __future__ import annotations

import time

import numpy as np
import pytest

from hpdl_mpi import nn, optim
from hpdl_mpi.base.trace import Trace
from hpdl_mpi.comm import Communicator, world
from hpdl_mpi.data import Batch
from hpdl_mpi.parallel import ProcessGrid, Replica, TrainingStep, progress_thread
from hpdl_mpi.parallel import step as step_module
from hpdl_mpi.parallel.feedback import Compression
from hpdl_mpi.parallel.shards import Sharding

STEPS = 5


class Slow(nn.ReLU):
    """Takes its time, in which a thread gets at what is under way."""

    def backward_input(self, dy, ctx):
        time.sleep(0.01)
        return super().backward_input(dy, ctx)


def train(comm: Communicator, kind: str, trace: Trace | None = None) -> np.ndarray:
    settings = {
        "compression": Compression(kind, rank=2, density=0.1) if kind in ("powersgd", "top-k") else None,
        "sharding": Sharding(comm.rank, comm.size, 4000, gradients=True) if kind == "sharding" else None,
    }
    layers = [layer for _ in range(5) for layer in (nn.Linear(64), Slow())]
    replica = Replica(
        nn.Sequential(*layers, nn.Linear(3)), (30,), optim.SGD(0.1, momentum=0.9), dtype="float32", seed=0, **settings
    )
    grid = ProcessGrid(comm, {"pp": 1, "dp": comm.size})
    wire = "bf16" if kind == "bf16" else None
    step = TrainingStep(replica, nn.CrossEntropy(), grid, bucket_bytes=4000, algorithm="ring", compression=wire)
    step.record(trace)
    rng = np.random.default_rng(comm.rank)
    for _ in range(STEPS):
        inputs, targets = rng.normal(size=(3, 30)).astype(np.float32), rng.integers(0, 3, 3)
        step(Batch(inputs, targets, np.arange(3), 3 * comm.size, 3 * comm.rank), epoch=0, lr=0.1)
    step.free()
    return replica.params


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("kind", ["plain", "bf16", "powersgd", "top-k", "sharding"])
def test_a_thread_changes_no_bit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    comm = world()
    moved = []
    whole = step_module._Sums._move

    def move(sums) -> None:
        moved.append(sums)
        whole(sums)

    alone = train(comm, kind)
    monkeypatch.setattr(step_module, "needs_thread", lambda comm: True)
    monkeypatch.setattr(progress_thread, "_SECONDS", 1e-4)
    monkeypatch.setattr(step_module._Sums, "_move", move)
    np.testing.assert_array_equal(train(comm, kind), alone)
    assert moved
    for other in comm.allgather_obj(alone.tobytes()):
        assert other == alone.tobytes()


@pytest.mark.mpi(min_size=2)
def test_rounds_that_a_thread_moves_along_are_recorded_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    comm, trace = world(), Trace()
    monkeypatch.setattr(step_module, "needs_thread", lambda comm: True)
    monkeypatch.setattr(progress_thread, "_SECONDS", 1e-4)
    train(comm, "plain", trace)
    steps = [span for span in trace.spans if span.kind == "step"]
    buckets = {span.name for span in trace.spans if span.kind == "reduce"}
    count = 2 * (comm.size - 1)
    for bucket in buckets:
        for number in range(1, count + 1):
            name = f"gradients, {bucket}: round {number} of {count}: "
            found = [span for span in trace.spans if span.kind == "round" and span.name.startswith(name)]
            assert len(found) == len(steps) == STEPS
            for span, whole in zip(found, steps, strict=True):
                assert whole.start <= span.start <= span.stop <= whole.stop
