"""The training step: what it refuses, and what it reports."""

from __future__ import annotations

import math
from contextlib import nullcontext

import numpy as np
import pytest

from hpdl_mpi import nn, optim
from hpdl_mpi.base.errors import InputError, TrainingError
from hpdl_mpi.comm import Communicator, SingleCommunicator, run_threads
from hpdl_mpi.data import Batch
from hpdl_mpi.parallel import ProcessGrid, Replica, TrainingStep
from hpdl_mpi.parallel.feedback import Compression
from hpdl_mpi.parallel.pipeline import Pipeline, make_schedule


def make_step(num_microbatches: int = 1, **settings: object) -> TrainingStep:
    pipeline = Pipeline(schedule=make_schedule("1f1b", num_ranks=1, num_microbatches=num_microbatches))
    replica = Replica(nn.Linear(2), (3,), optim.SGD(0.1), dtype=np.float32, seed=0, pipeline=pipeline)
    return TrainingStep(replica, nn.CrossEntropy(), ProcessGrid(SingleCommunicator(), {"pp": 1, "dp": 1}), **settings)


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.inf, math.nan])
def test_impossible_bound_of_the_gradient_is_refused(clip_norm: float) -> None:
    with pytest.raises(InputError, match=r"^training\.clip_norm: out of range.*expected a number above 0"):
        make_step(clip_norm=clip_norm)


@pytest.mark.parametrize("nodes", [[0, 0], [0, 1]])
def test_step_whose_loss_is_no_number_updates_nothing_and_another_one_can_follow(nodes: list[int]) -> None:
    def run(comm: Communicator) -> list[np.ndarray]:
        replica = Replica(nn.Linear(2), (3,), optim.SGD(0.1), dtype=np.float32, seed=0)
        step = TrainingStep(replica, nn.CrossEntropy(), ProcessGrid(comm, {"pp": 1, "dp": 2}), bucket_bytes=1)
        params = [replica.params.copy()]
        for value in (np.nan, 1.0):
            inputs = np.full((2, 3), value if comm.rank else 1.0, np.float32)
            report = step(Batch(inputs, np.arange(2), np.arange(2), global_size=4, offset=0), epoch=0, lr=0.1)
            assert report.finite == (value == 1.0)
            params.append(replica.params.copy())
            replica.grads.fill(0)
        return params

    for before, after_nan, after in run_threads(2, run, nodes=nodes):
        np.testing.assert_array_equal(after_nan, before)
        assert np.isfinite(after).all()
        assert (after != before).any()


@pytest.mark.parametrize("kind", ["powersgd", "top-k"])
def test_what_is_carried_over_does_not_outlive_a_step_whose_loss_is_no_number(kind: str) -> None:
    def run(comm: Communicator) -> np.ndarray:
        settings = {"dtype": np.float32, "seed": 0, "compression": Compression(kind, rank=1, density=0.5)}
        replica = Replica(nn.Linear(9), (7,), optim.SGD(0.1), **settings)
        step = TrainingStep(replica, nn.CrossEntropy(), ProcessGrid(comm, {"pp": 1, "dp": 2}), algorithm="ring")
        for value in (np.nan, 1.0, 1.0):
            inputs = np.full((2, 7), value if comm.rank else 1.0, np.float32)
            step(Batch(inputs, np.arange(2), np.arange(2), global_size=4, offset=0), epoch=0, lr=0.1)
            if np.isnan(value):
                replica.grads.fill(0)
        return replica.params

    one, other = run_threads(2, run)
    assert np.isfinite(one).all()
    np.testing.assert_array_equal(one, other)


def test_sums_are_over_all_micro_batches_and_votes_are_those_of_this_batch() -> None:
    step = make_step(num_microbatches=3, num_flags=2)
    inputs, targets = np.zeros((7, 3), np.float32), np.arange(7) % 2
    batch = Batch(inputs, targets, np.arange(7), global_size=7, offset=0)
    for flags in ((True, False), (False, True)):
        report = step(batch, epoch=0, lr=0.0, flags=lambda flags=flags: flags)
        # Zero inputs and biases: each class is as likely as the other, and the first of equals is the guess.
        assert report.sums.weight == 7
        assert report.sums.score == 4
        assert report.sums.loss == pytest.approx(7 * math.log(2), rel=1e-6)
        assert report.votes == flags


def test_ranks_that_do_not_make_the_same_calls_are_told_in_the_next_step() -> None:
    def run(comm: Communicator) -> None:
        replica = Replica(nn.Linear(2), (3,), optim.SGD(0.1), dtype=np.float32, seed=0)
        step = TrainingStep(replica, nn.CrossEntropy(), ProcessGrid(comm, {"pp": 1, "dp": 3}))
        batch = Batch(np.ones((2, 3), np.float32), np.arange(2), np.arange(2), global_size=6, offset=0)
        step(batch, epoch=0, lr=0.1)
        comm.begin_collective("a sum of rank 2's own" if comm.rank == 2 else "a sum")
        step(batch, epoch=0, lr=0.1)

    with pytest.raises(TrainingError, match=r"Found call \d+: rank 0: a sum; rank 1: a sum; rank 2: a sum of"):
        run_threads(3, run)


@pytest.mark.parametrize("pp", [2, 4])
def test_calls_are_compared_along_each_line_of_the_grid(pp: int) -> None:
    def run(comm: Communicator) -> None:
        grid = ProcessGrid(comm, {"pp": pp, "dp": 4 // pp})
        layers = nn.Sequential(*(nn.Linear(2) for _ in range(4)))
        schedule = make_schedule("1f1b", num_ranks=pp, num_microbatches=2)
        pipeline = Pipeline(grid.axis("pp"), schedule, cuts=tuple(range(4 // pp, 4, 4 // pp)))
        replica = Replica(layers, (3,), optim.SGD(0.1), dtype=np.float32, seed=0, pipeline=pipeline)
        step = TrainingStep(replica, nn.CrossEntropy(), grid, bucket_bytes=1)
        batch = Batch(np.ones((2, 3), np.float32), np.arange(2), np.arange(2), global_size=8 // pp, offset=0)
        for _ in range(3):
            step(batch, epoch=0, lr=0.1)
        if comm.rank == 3:
            grid.axis("dp").begin_collective("one too many")
        strays = pp == 2 and grid.coordinate("pp") == 1
        with pytest.raises(TrainingError, match="rank 3: one too many") if strays else nullcontext():
            step(batch, epoch=0, lr=0.1)

    run_threads(4, run)
