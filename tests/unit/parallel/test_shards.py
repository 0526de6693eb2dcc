"""Ranks that share the optimizer's state: the same parameters as if each had all of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpdl_mpi import nn, optim
from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import Communicator, SingleCommunicator, run_threads
from hpdl_mpi.data import Batch
from hpdl_mpi.parallel import ProcessGrid, Replica, TrainingStep
from hpdl_mpi.parallel.shards import Sharding
from hpdl_mpi.train import checkpoint
from tests.checkpoint_cases import PROGRESS

STEPS = 4


def make_model() -> nn.Layer:
    return nn.Sequential(nn.Linear(7), nn.ReLU(), nn.Linear(5), nn.ReLU(), nn.Linear(3))


def train(
    comm: Communicator,
    optimizer: optim.Optimizer,
    bucket_bytes: int,
    *,
    sharded: bool = False,
    sharding: Sharding | None = None,
    gradients: bool = False,
    clip_norm: float | None = None,
) -> Replica:
    if sharded:
        sharding = Sharding(comm.rank, comm.size, bucket_bytes, gradients)
    replica = Replica(make_model(), (4,), optimizer, dtype=np.float32, seed=0, sharding=sharding)
    grid = ProcessGrid(comm, {"pp": 1, "dp": comm.size})
    step = TrainingStep(
        replica, nn.CrossEntropy(), grid, bucket_bytes=bucket_bytes, algorithm="ring", clip_norm=clip_norm
    )
    rng = np.random.default_rng(comm.rank)
    for _ in range(STEPS):
        inputs, targets = rng.normal(size=(3, 4)).astype(np.float32), rng.integers(0, 3, 3)
        batch = Batch(inputs, targets, np.arange(3), global_size=3 * comm.size, offset=3 * comm.rank)
        step(batch, epoch=0, lr=0.1)
        assert not replica.grads.any()
    return replica


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("num_ranks", [2, 3, 4])
@pytest.mark.parametrize("bucket_bytes", [1, 100, 10**6])
@pytest.mark.parametrize(
    "optimizer",
    [optim.SGD(0.1), optim.SGD(0.1, momentum=0.9, weight_decay=0.1), optim.AdamW(0.1)],
    ids=["sgd", "momentum", "adamw"],
)
def test_parameters_are_those_of_ranks_that_keep_all(
    num_ranks: int, bucket_bytes: int, optimizer: optim.Optimizer, gradients: bool
) -> None:
    def run(comm: Communicator, sharded: bool) -> bytes:
        return train(comm, optimizer, bucket_bytes, sharded=sharded, gradients=gradients).params.tobytes()

    whole, shared = (
        run_threads(num_ranks, lambda comm, sharded=sharded: run(comm, sharded)) for sharded in (False, True)
    )
    assert {*whole} == {*shared}
    assert len({*whole}) == 1


def test_clipping_goes_by_the_norm_of_all() -> None:
    def run(comm: Communicator, sharded: bool) -> np.ndarray:
        return train(comm, optim.SGD(0.1, momentum=0.9), 100, sharded=sharded, clip_norm=0.1).params

    whole, shared = (run_threads(3, lambda comm, sharded=sharded: run(comm, sharded)) for sharded in (False, True))
    # Norms are sums in float64 in another order: what they scale differs in the last bit of float32 at most.
    np.testing.assert_allclose(shared[0], whole[0], rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(shared[0], shared[2])


def test_each_rank_keeps_its_share() -> None:
    replicas = run_threads(3, lambda comm: train(comm, optim.Adam(), 100, sharded=True))
    sizes = [replica.slots["first"].size for replica in replicas]
    assert sum(sizes) == train(SingleCommunicator(), optim.Adam(), 100, sharded=False).layout.size
    assert max(sizes) - min(sizes) <= 3 * 3  # one element for each bucket


def test_checkpoints_are_those_of_ranks_that_keep_all_and_load_on_any_number(tmp_path: Path) -> None:
    optimizer = optim.Adam(0.1)

    def write(comm: Communicator, sharded: bool) -> None:
        replica = train(comm, optimizer, 100, sharded=sharded)
        grid = ProcessGrid(comm, {"pp": 1, "dp": comm.size})
        checkpoint.save(tmp_path / str(sharded), replica, PROGRESS, grid, keep=1)

    def read(sharded: bool, sharding: Sharding | None = None) -> Replica:
        replica = Replica(make_model(), (4,), optimizer, dtype=np.float32, seed=1, sharding=sharding)
        path = checkpoint.latest(tmp_path / str(sharded))
        assert path is not None
        checkpoint.load(path, replica)
        return replica

    for sharded in (False, True):
        run_threads(3, lambda comm, sharded=sharded: write(comm, sharded))
    whole, found = read(False), read(True)
    np.testing.assert_array_equal(found.params, whole.params)
    for name, slot in whole.slots.items():
        assert slot.any()
        np.testing.assert_array_equal(found.slots[name], slot)
        parts = [read(True, Sharding(index, 2, 60)) for index in range(2)]
        for part in parts:
            kept = np.concatenate([slot[slice(*run)] for run in part.shards])
            segments = np.concatenate([_belongs(part)[slice(*run)] for run in part.shards])
            np.testing.assert_array_equal(part.slots[name][segments], kept[segments])


def test_machines_with_one_copy_each_keep_one_state_between_them(tmp_path: Path) -> None:
    nodes, optimizer = [0, 1, 0, 1], optim.Adam(0.1)

    def write(comm: Communicator) -> Replica:
        places = {"index": comm.node_rank, "count": comm.node_size, "copy": comm.node, "num_copies": comm.num_nodes}
        sharding = Sharding(max_bytes=100, one_copy=True, **places)
        replica = train(comm, optimizer, 100, sharding=sharding)
        grid = ProcessGrid(comm, {"pp": 1, "dp": comm.size})
        checkpoint.save(tmp_path, replica, PROGRESS, grid, keep=1)
        return replica

    replicas = run_threads(4, write, nodes=nodes)
    path = checkpoint.latest(tmp_path)
    assert path is not None
    assert len(list(path.glob("*.h5"))) == 2  # of the first machine's ranks
    whole = Replica(make_model(), (4,), optimizer, dtype=np.float32, seed=1)
    checkpoint.load(path, whole)
    for replica in replicas:
        np.testing.assert_array_equal(replica.params, whole.params)
        for name, slot in replica.slots.items():
            np.testing.assert_array_equal(
                slot, np.concatenate([whole.slots[name][slice(*run)] for run in replica.shards])
            )


def _belongs(replica: Replica) -> np.ndarray:
    """Return which elements of the flat arrays are a parameter's; the others are gaps."""
    found = np.zeros(replica.layout.size, bool)
    for segment in replica.layout.segments:
        found[segment.start : segment.stop] = True
    return found


@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=5), count=st.integers(1, 7))
def test_chunks_of_all_ranks_are_the_bucket(sizes: list[int], count: int) -> None:
    start = 0
    for size in sizes:
        bucket = start, start + size
        chunks = [Sharding(index, count).own(bucket) for index in range(count)]
        assert [chunk[0] for chunk in chunks] + [bucket[1]] == [bucket[0]] + [chunk[1] for chunk in chunks]
        start += size


@pytest.mark.parametrize("optimizer", [optim.LARS(0.1), optim.LAMB(0.1)], ids=["lars", "lamb"])
def test_optimizers_that_look_at_whole_parameters_are_refused(optimizer: optim.Optimizer) -> None:
    with pytest.raises(InputError, match=r"parallel\.sharding: .* looks at whole parameters, which shards cut"):
        Replica(make_model(), (4,), optimizer, dtype=np.float32, seed=0, sharding=Sharding(0, 2))
