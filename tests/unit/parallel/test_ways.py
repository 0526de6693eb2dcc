"""Every way to train together gives what one rank alone gives."""

from __future__ import annotations

import numpy as np
import pytest

from hpdl_mpi import nn, optim
from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import ALLREDUCES, Communicator, SingleCommunicator, run_threads
from hpdl_mpi.data import Batch
from hpdl_mpi.parallel import ProcessGrid, Replica, TrainingStep
from hpdl_mpi.parallel.pipeline import Pipeline, make_schedule
from hpdl_mpi.parallel.shards import Sharding

SAMPLES, STEPS, BUCKET_BYTES = 11, 3, 400
ALGORITHMS = [name for name, kind in ALLREDUCES.items() if not kind.in_window]


def train(
    comm: Communicator, algorithm: str, num_microbatches: int, sharding: str, clip_norm: float | None
) -> np.ndarray:
    """Train on shares of batches that do not divide by the ranks, and return the parameters."""
    model = nn.Sequential(nn.Linear(7), nn.Tanh(), nn.Linear(6), nn.Tanh(), nn.Linear(3))
    shared = Sharding(comm.rank, comm.size, BUCKET_BYTES, sharding == "gradients")
    if sharding == "one copy":
        shared = Sharding(
            comm.node_rank, comm.node_size, BUCKET_BYTES, one_copy=True, copy=comm.node, num_copies=comm.num_nodes
        )
    replica = Replica(
        model,
        (4,),
        optim.AdamW(0.05, weight_decay=0.1),
        dtype=np.float64,
        seed=0,
        pipeline=Pipeline(schedule=make_schedule("1f1b", num_ranks=1, num_microbatches=num_microbatches)),
        sharding=None if sharding in ("none", "windows") or comm.size == 1 else shared,
    )
    grid = ProcessGrid(comm, {"pp": 1, "dp": comm.size})
    step = TrainingStep(
        replica,
        nn.CrossEntropy(),
        grid,
        clip_norm=clip_norm,
        bucket_bytes=BUCKET_BYTES,
        algorithm=algorithm,
        shares_memory=sharding == "windows",
    )
    start, stop = comm.rank * SAMPLES // comm.size, (comm.rank + 1) * SAMPLES // comm.size
    for number in range(STEPS):
        rng = np.random.default_rng(number)
        inputs, targets = rng.normal(size=(SAMPLES, 4)), rng.integers(0, 3, SAMPLES)
        share = slice(start, stop)
        batch = Batch(inputs[share], targets[share], np.arange(start, stop), global_size=SAMPLES, offset=start)
        step(batch, epoch=0, lr=0.05)
    step.free()
    return replica.params


@pytest.fixture(scope="module")
def alone() -> dict[float | None, np.ndarray]:
    return {norm: train(SingleCommunicator(), "ring", 1, "none", norm) for norm in (None, 0.5)}


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("sharding", ["none", "optimizer", "gradients"])
@pytest.mark.parametrize("num_microbatches", [1, 3])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_ranks_together_learn_as_one_alone(
    algorithm: str,
    num_microbatches: int,
    sharding: str,
    clip_norm: float | None,
    num_ranks: int,
    alone: dict[float | None, np.ndarray],
) -> None:
    """Sums are in another order, of 11 terms in float64; Adam divides by gradients of 1e-3."""
    found = run_threads(num_ranks, lambda comm: train(comm, algorithm, num_microbatches, sharding, clip_norm))
    for params in found:
        np.testing.assert_array_equal(params, found[0])
    np.testing.assert_allclose(found[0], alone[clip_norm], rtol=0, atol=1e-10)


@pytest.mark.parametrize("nodes", [[0], [0, 0], [0, 0, 0], [0, 0, 0, 0], [0, 1], [0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 1]])
@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("sharding", ["windows", "one copy"])
@pytest.mark.parametrize("num_microbatches", [1, 3])
def test_ranks_that_share_memory_learn_as_one_alone(
    num_microbatches: int,
    sharding: str,
    clip_norm: float | None,
    nodes: list[int],
    alone: dict[float | None, np.ndarray],
) -> None:
    def run() -> list[np.ndarray]:
        return run_threads(
            len(nodes), lambda comm: train(comm, "auto", num_microbatches, sharding, clip_norm), nodes=nodes
        )

    if sharding == "one copy" and nodes == [0, 0, 1]:
        with pytest.raises(InputError, match=r"as many ranks on each machine\. Found 2, 1"):
            run()
        return
    found = run()
    for params in found:
        np.testing.assert_array_equal(params, found[0])
    np.testing.assert_allclose(found[0], alone[clip_norm], rtol=0, atol=1e-10)
