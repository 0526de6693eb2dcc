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
from hpdl_mpi.train import Parallel

SAMPLES, STEPS, BUCKET_BYTES = 11, 3, 400
SHARED_MEMORY = {"windows": {"shared_memory": "gradients"}, "one copy": {"shared_memory": "parameters"}}
ALGORITHMS = [name for name, kind in ALLREDUCES.items() if not kind.in_window]


def train(
    comm: Communicator,
    algorithm: str,
    num_microbatches: int,
    sharding: str,
    clip_norm: float | None,
    *,
    pp: int = 1,
    compression: str | None = None,
    dtype: str = "float64",
) -> np.ndarray:
    """Train on shares of batches that do not divide by the ranks, and return the parameters."""
    model = nn.Sequential(nn.Linear(7), nn.Tanh(), nn.Linear(6), nn.Tanh(), nn.Linear(3))
    grid = ProcessGrid(comm, {"pp": pp, "dp": comm.size // pp})
    dp = grid.axis("dp")
    settings = SHARED_MEMORY.get(sharding, {"sharding": sharding})
    parallel = Parallel.model_validate({"bucket_cap_mb": BUCKET_BYTES / 1e6, **settings})
    schedule = make_schedule("1f1b", num_ranks=pp, num_microbatches=num_microbatches)
    replica = Replica(
        model,
        (4,),
        optim.AdamW(0.05, weight_decay=0.1),
        dtype=dtype,
        seed=0,
        pipeline=Pipeline(grid.axis("pp"), schedule, (2,) if pp == 2 else ()),
        sharding=parallel.sharded(dp.rank, dp.nodes),
    )
    step = TrainingStep(
        replica,
        nn.CrossEntropy(),
        grid,
        clip_norm=clip_norm,
        bucket_bytes=BUCKET_BYTES,
        algorithm=algorithm,
        compression=compression,
        shared_memory=parallel.shared_memory,
    )
    start, stop = dp.rank * SAMPLES // dp.size, (dp.rank + 1) * SAMPLES // dp.size
    for number in range(STEPS):
        rng = np.random.default_rng(number)
        inputs, targets = rng.normal(size=(SAMPLES, 4)).astype(dtype), rng.integers(0, 3, SAMPLES)
        share = slice(start, stop)
        batch = Batch(inputs[share], targets[share], np.arange(start, stop), global_size=SAMPLES, offset=start)
        step(batch, epoch=0, lr=0.05)
    if algorithm != "auto":
        assert {*step.algorithms} == ({algorithm} if dp.size > 1 else set())
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


TOLD = [(name, [0, 0, 0, 0]) for name in ("auto", *ALGORITHMS)]
TOLD += [(name, [0, 0, 1, 1]) for name in ("auto", *ALGORITHMS) if name == "auto" or not ALLREDUCES[name].one_machine]


@pytest.mark.parametrize(("algorithm", "nodes"), TOLD)
@pytest.mark.parametrize("sharding", ["optimizer", "gradients"])
def test_ranks_that_share_the_update_sum_as_they_are_told(algorithm: str, sharding: str, nodes: list[int]) -> None:
    """Each algorithm has its own order of additions, so bits of four terms in float32 tell which one was taken."""

    def run(algorithm: str, sharding: str) -> np.ndarray:
        return run_threads(4, lambda comm: train(comm, algorithm, 1, sharding, None, dtype="float32"), nodes=nodes)[0]

    found, ring = run(algorithm, sharding), run("ring", "none")
    np.testing.assert_array_equal(found, run("ring" if algorithm == "auto" else algorithm, "none"))
    assert np.array_equal(found, ring) == (algorithm in ("auto", "ring"))


@pytest.mark.parametrize("compression", ["bf16", "fp16"])
@pytest.mark.parametrize("algorithm", ["ring", "tree"])
def test_ranks_that_share_the_update_round_as_those_that_do_not(algorithm: str, compression: str) -> None:
    def run(sharding: str, compression: str | None) -> list[np.ndarray]:
        settings = {"compression": compression, "dtype": "float32"}
        return run_threads(4, lambda comm: train(comm, algorithm, 1, sharding, None, **settings))

    found = run("optimizer", compression)
    np.testing.assert_array_equal(found, run("none", compression))
    assert not np.array_equal(found, run("optimizer", None))


EVEN = [[0], [0, 0], [0, 0, 0], [0, 0, 0, 0], [0, 1], [0, 0, 1, 1], [0, 1, 0, 1]]


@pytest.mark.parametrize("nodes", EVEN)
@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("sharding", SHARED_MEMORY)
@pytest.mark.parametrize("num_microbatches", [1, 3])
def test_ranks_that_share_memory_learn_as_one_alone(
    num_microbatches: int,
    sharding: str,
    clip_norm: float | None,
    nodes: list[int],
    alone: dict[float | None, np.ndarray],
) -> None:
    found = run_threads(
        len(nodes), lambda comm: train(comm, "auto", num_microbatches, sharding, clip_norm), nodes=nodes
    )
    for params in found:
        np.testing.assert_array_equal(params, found[0])
    np.testing.assert_allclose(found[0], alone[clip_norm], rtol=0, atol=1e-10)


@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("sharding", SHARED_MEMORY)
@pytest.mark.parametrize("nodes", [[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1]])
def test_pipelines_that_share_memory_learn_as_one_rank(
    nodes: list[int], sharding: str, clip_norm: float | None, alone: dict[float | None, np.ndarray]
) -> None:
    found = run_threads(4, lambda comm: train(comm, "auto", 3, sharding, clip_norm, pp=2), nodes=nodes)
    for first, second in (found[:2], found[2:]):
        np.testing.assert_array_equal(first, second)
    # What backward comes to first, the last stage's, lies first.
    np.testing.assert_allclose(np.concatenate([found[2], found[0]]), alone[clip_norm], rtol=0, atol=1e-10)


@pytest.mark.parametrize("nodes", [[0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]])
@pytest.mark.parametrize("sharding", SHARED_MEMORY)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_messages_in_less_round_what_they_carry_alone(dtype: str, sharding: str, nodes: list[int]) -> None:
    """Sums are rounded to eight bits and the others not; steps of Adam are of the size of its rate, 0.05."""

    def run(compression: str | None) -> list[np.ndarray]:
        return run_threads(
            4, lambda comm: train(comm, "auto", 1, sharding, None, compression=compression, dtype=dtype), nodes=nodes
        )

    first, again, exact = run("bf16"), run("bf16"), run(None)
    for params in (*first, *again):
        np.testing.assert_array_equal(params, first[0])
    if dtype == "float64" or len({*nodes}) == 1:
        np.testing.assert_array_equal(first[0], exact[0])
    else:
        assert 0 < np.abs(first[0] - exact[0]).max() < STEPS * 0.05


@pytest.mark.parametrize(("nodes", "pp"), [([0, 0, 1], 1), ([0, 0, 0, 1], 2), ([0, 0, 0, 0, 1, 1], 2)])
@pytest.mark.parametrize("sharding", SHARED_MEMORY)
def test_all_ranks_refuse_machines_that_have_unequal_parts(sharding: str, nodes: list[int], pp: int) -> None:
    def refuse(comm: Communicator) -> None:
        with pytest.raises(InputError, match="needs as many data-parallel ranks on each machine") as refused:
            train(comm, "auto", 1, sharding, None, pp=pp)
        assert refused.value.shared

    run_threads(len(nodes), refuse, nodes=nodes)


@pytest.mark.parametrize("sharding", ["none", *SHARED_MEMORY])
def test_a_step_without_a_number_leaves_nothing_behind(sharding: str) -> None:
    """The second of three batches has a NaN: it changes nothing, nor does what was computed of it."""

    def run(comm: Communicator, numbers: list[int]) -> np.ndarray:
        model = nn.Sequential(nn.Linear(6), nn.Tanh(), nn.Linear(3))
        parallel = Parallel.model_validate(SHARED_MEMORY.get(sharding, {}))
        optimizer = optim.SGD(0.1, momentum=0.9)
        shards = parallel.sharded(comm.rank, comm.nodes)
        replica = Replica(model, (4,), optimizer, dtype="float64", seed=0, sharding=shards)
        grid = ProcessGrid(comm, {"pp": 1, "dp": comm.size})
        step = TrainingStep(replica, nn.CrossEntropy(), grid, shared_memory=parallel.shared_memory)
        for number in numbers:
            inputs = np.random.default_rng(number).normal(size=(4, 4))
            inputs[2] = np.nan if number == 1 else inputs[2]
            mine = slice(2 * comm.rank, 2 * comm.rank + 2)
            batch = Batch(inputs[mine], np.arange(2), np.arange(2), global_size=4, offset=mine.start)
            assert step(batch, epoch=0, lr=0.1).finite == (number != 1)
        step.free()
        return replica.params

    found, expected = (run_threads(2, lambda comm, n=n: run(comm, n)) for n in ([0, 1, 2], [0, 2]))
    np.testing.assert_array_equal(found[0], expected[0])
