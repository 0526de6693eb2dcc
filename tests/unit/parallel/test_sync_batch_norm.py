"""Batch normalisation over ranks: as one rank has it with all samples."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from hpdl_mpi import nn, optim
from hpdl_mpi.comm import Communicator, SingleCommunicator, run_threads
from hpdl_mpi.data import Batch
from hpdl_mpi.nn import Recompute
from hpdl_mpi.parallel import ProcessGrid, Replica, TrainingStep
from hpdl_mpi.parallel.pipeline import Pipeline, make_schedule

STEPS = 3


class Learned(NamedTuple):
    params: np.ndarray
    statistics: np.ndarray


def make_model(recomputes: bool) -> nn.Sequential:
    body = nn.Sequential(nn.Conv2d(5, 3, padding=1), nn.BatchNorm2d(activation="relu"), nn.Conv2d(5, 3, padding=1))
    block = nn.Residual(nn.Sequential(body, nn.BatchNorm2d()), nn.Sequential(nn.Conv2d(5, 1), nn.BatchNorm2d()))
    return nn.Sequential(Recompute(block) if recomputes else block, nn.GlobalAvgPool2d(), nn.Linear(3))


def train(
    comm: Communicator,
    num_samples: int,
    *,
    sync: bool = True,
    pp: int = 1,
    num_microbatches: int = 1,
    recomputes: bool = False,
) -> Learned:
    """Train on shares of batches, and return what this rank holds then."""
    grid = ProcessGrid(comm, {"pp": pp, "dp": comm.size // pp})
    schedule = make_schedule("1f1b", num_ranks=pp, num_microbatches=num_microbatches)
    pipeline = Pipeline(grid.axis("pp"), schedule, (1,) if pp == 2 else ())
    optimizer = optim.SGD(0.1, momentum=0.9)
    replica = Replica(make_model(recomputes), (4, 4, 2), optimizer, dtype=np.float64, seed=0, pipeline=pipeline)
    step = TrainingStep(replica, nn.CrossEntropy(), grid, algorithm="ring", sync_batch_norm=sync)
    dp = grid.axis("dp")
    start, stop = dp.rank * num_samples // dp.size, (dp.rank + 1) * num_samples // dp.size
    for number in range(STEPS):
        rng = np.random.default_rng(number)
        inputs, targets = rng.normal(2.0, 3.0, (num_samples, 4, 4, 2)), rng.integers(0, 3, num_samples)
        share = slice(start, stop)
        batch = Batch(inputs[share], targets[share], np.arange(start, stop), global_size=num_samples, offset=start)
        step(batch, epoch=0, lr=0.1)
    step.free()
    return Learned(replica.params, replica.statistics)


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
@pytest.mark.parametrize("num_samples", [1, 2, 11])
@pytest.mark.parametrize("recomputes", [False, True])
def test_ranks_together_normalise_as_one_does(num_samples: int, num_ranks: int, recomputes: bool) -> None:
    """Sums are in another order, in float64, of numbers of order 1."""
    alone = train(SingleCommunicator(), num_samples)
    found = run_threads(num_ranks, lambda comm: train(comm, num_samples, recomputes=recomputes))
    for one in found:
        np.testing.assert_array_equal(one.params, found[0].params)
        np.testing.assert_array_equal(one.statistics, found[0].statistics)
    np.testing.assert_allclose(found[0].params, alone.params, rtol=0, atol=1e-11)
    np.testing.assert_allclose(found[0].statistics, alone.statistics, rtol=0, atol=1e-11)


def test_each_by_itself_learns_something_else() -> None:
    alone = train(SingleCommunicator(), 11)
    apart = run_threads(2, lambda comm: train(comm, 11, sync=False))
    assert np.abs(apart[0].params - alone.params).max() > 1e-3


@pytest.mark.parametrize("num_samples", [2, 3, 11])
def test_pipelines_side_by_side_normalise_as_their_stages_do_on_one_rank(num_samples: int) -> None:
    """With few samples some micro-batches of a pipeline have none, and others elsewhere at the same time have."""
    whole = run_threads(2, lambda comm: train(comm, num_samples, num_microbatches=3))
    parts = run_threads(4, lambda comm: train(comm, num_samples, num_microbatches=3, pp=2))
    # The first stage's ranks have the block, and what is behind it lies before it: as backward comes to it.
    np.testing.assert_allclose(np.concatenate([parts[2].params, parts[0].params]), whole[0].params, rtol=0, atol=1e-11)
    np.testing.assert_allclose(parts[1].statistics, whole[0].statistics, rtol=0, atol=1e-11)
