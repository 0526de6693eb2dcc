"""Micro-batches whose actions are replayed: they give the bits of ordinary ones, whatever comes between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from hpdl_mpi import nn, optim
from hpdl_mpi.base.errors import BadSample
from hpdl_mpi.comm import Communicator, SingleCommunicator, run_threads
from hpdl_mpi.data import Batch
from hpdl_mpi.kernels.recording import Recording
from hpdl_mpi.kernels.threads import set_threads
from hpdl_mpi.models import bert, gpt, llama, mlp, seq2seq
from hpdl_mpi.parallel import ProcessGrid, Replica, TrainingStep
from hpdl_mpi.parallel.pipeline import Feed, Pipeline, make_schedule
from hpdl_mpi.parallel.pipeline.replays import _MOST, is_one_by_one

VOCABULARY = 11
SIZES = {"layers": 2, "heads": 2, "width": 8}

Make = Callable[[np.random.Generator, int], tuple[Any, np.ndarray]]


def tokens(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(1, VOCABULARY, shape)


def one_text(rng: np.random.Generator, n: int) -> tuple[Any, np.ndarray]:
    return tokens(rng, n, 5), tokens(rng, n, 5)


def two_texts(rng: np.random.Generator, n: int) -> tuple[Any, np.ndarray]:
    sources, targets = tokens(rng, n, 4), tokens(rng, n, 3)
    sources[:, 3] *= rng.integers(0, 2, n)  # 0 is padding
    return (sources, targets), tokens(rng, n, 3)


def rows(rng: np.random.Generator, n: int) -> tuple[Any, np.ndarray]:
    return rng.normal(size=(n, 6)), tokens(rng, n)


MODELS: dict[str, tuple[Callable[[], nn.Layer], Any, Make]] = {
    "gpt": (lambda: gpt(VOCABULARY, 5, **SIZES, dropout=0.1), (5,), one_text),
    "llama": (lambda: llama(VOCABULARY, **SIZES, kv_heads=1, hidden=12), (5,), one_text),
    "bert": (lambda: bert(VOCABULARY, 5, **SIZES, dropout=0.1), (5,), one_text),
    "seq2seq": (
        lambda: seq2seq(VOCABULARY, VOCABULARY, **SIZES, hidden=12, dropout=0.1),
        ((4,), (3,)),
        two_texts,
    ),
    "mlp": (lambda: mlp((8, 8), outputs=VOCABULARY, dropout=0.2), (6,), rows),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    set_threads(1)
    yield
    set_threads(1)


class Run:
    """A replica of a model and its training step, with random batches of any size."""

    def __init__(self, name: str, comm: Communicator | None = None, num_microbatches: int = 1, **settings: Any) -> None:
        make, input_shape, self._make_batch = MODELS[name]
        comm = comm or SingleCommunicator()
        pipeline = Pipeline(schedule=make_schedule("1f1b", 1, num_microbatches))
        self.replica = Replica(
            make(), input_shape, optim.Adam(0.01), dtype=np.float64, seed=0, pipeline=pipeline, **settings
        )
        self.replica.pool.poison = True
        grid = ProcessGrid(comm, {"pp": 1, "dp": comm.size})
        self.learn = TrainingStep(self.replica, nn.CrossEntropy(), grid, bucket_bytes=256)
        self._rng = np.random.default_rng(comm.rank)
        self._size = comm.size

    def batch(self, n: int) -> Batch:
        inputs, targets = self._make_batch(self._rng, n)
        ids = self._rng.integers(2**50, size=n)
        return Batch(inputs, targets, ids, global_size=n * self._size, offset=0)

    def step(self, n: int, epoch: int = 0) -> nn.LossSums:
        return self.learn(self.batch(n), epoch=epoch, lr=0.01).sums

    def evaluate(self, n: int) -> nn.LossSums:
        return self.replica.evaluate(Feed.of(self.batch(n)), nn.CrossEntropy())


@pytest.fixture
def count_replays(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    counted = []
    replay = Recording.replay
    monkeypatch.setattr(Recording, "replay", lambda self: (counted.append(self), replay(self))[1])
    return lambda: len(counted)


def outcomes(run: Run) -> tuple[list[Any], np.ndarray]:
    """Return what a run of batches of several sizes, epochs, numbers of threads and evaluations comes to."""
    sums: list[Any] = [run.step(n, epoch) for epoch in (0, 1) for n in (3, 2, 3, 3, 2)]
    evaluator = run.replica.evaluator(nn.CrossEntropy())
    for _ in range(2):
        with run.replica.averaged():
            sums += [evaluator.run(Feed.of(run.batch(4)))[0] for _ in range(2)]
        sums += [run.step(3, 1), run.replica.predict(run.batch(3).inputs, np.arange(3)).tolist()]
    set_threads(2)
    sums += [run.step(3, 1) for _ in range(3)]
    return sums, run.replica.params


@pytest.mark.parametrize("num_microbatches", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_a_run_has_the_bits_of_one_without(
    name: str, num_microbatches: int, monkeypatch: pytest.MonkeyPatch, count_replays: Callable[[], int]
) -> None:
    settings = {"num_microbatches": num_microbatches, "ema": 0.5}
    found, params = outcomes(Run(name, **settings))
    replays = count_replays()
    set_threads(1)
    monkeypatch.setattr("hpdl_mpi.parallel.pipeline.replays.is_replayable", lambda model: False)
    expected, others = outcomes(Run(name, **settings))
    assert found == expected
    np.testing.assert_array_equal(params, others)
    assert replays >= 24
    assert count_replays() == replays


@pytest.mark.parametrize("num_microbatches", [1, 3])
def test_data_parallel_ranks_sum_gradients_of_layers_as_replays_go_by(
    num_microbatches: int, monkeypatch: pytest.MonkeyPatch, count_replays: Callable[[], int]
) -> None:
    def train(comm: Communicator) -> np.ndarray:
        run = Run("gpt", comm, num_microbatches)
        for _ in range(4):
            run.step(3)
        return run.replica.params

    found = run_threads(2, train)
    assert count_replays() > 0
    monkeypatch.setattr("hpdl_mpi.parallel.pipeline.replays.is_replayable", lambda model: False)
    for params, others in zip(found, run_threads(2, train), strict=True):
        np.testing.assert_array_equal(params, others)


def test_replays_take_no_more_memory_however_many(count_replays: Callable[[], int]) -> None:
    run = Run("gpt")
    for n in (3, 3, 2, 2):
        run.step(n)
    held = run.replica.pool.bytes_held
    for n in (3, 2, 1) * 3:
        run.step(n)
        run.learn._executor._replays._found.popitem()  # as if there were many shapes
    assert run.replica.pool.bytes_held == held
    assert run.replica.pool.bytes_live == 0
    assert count_replays() > 0


def test_recordings_of_many_shapes_make_way_for_others() -> None:
    run = Run("mlp")
    for n in range(1, _MOST + 5):
        run.step(n)
    (found,) = {len(executor._replays._found) for executor in [run.learn._executor]}
    assert found == _MOST


def test_a_token_outside_of_the_vocabulary_is_found_in_a_replay_too() -> None:
    run = Run("gpt")
    run.step(3)
    run.step(3)
    batch = run.batch(3)
    batch.inputs[1, 2] = VOCABULARY
    with pytest.raises(BadSample, match="a token is outside the vocabulary") as caught:
        run.learn(batch, epoch=0, lr=0.01)
    assert caught.value.sample == batch.sample_ids[1]


def test_a_label_outside_of_the_classes_is_found_in_a_replay_too() -> None:
    run = Run("gpt")
    run.step(3)
    run.step(3)
    batch = run.batch(3)
    batch.targets[2, 0] = -1
    with pytest.raises(BadSample, match="a label is outside the classes") as caught:
        run.learn(batch, epoch=0, lr=0.01)
    assert caught.value.sample == batch.sample_ids[2]


def test_arrays_that_a_replica_moves_to_are_read_from_there() -> None:
    moved, still = Run("mlp"), Run("mlp")
    for run in (moved, still):
        run.step(3)
        run.step(3)
    replica = moved.replica
    old = replica.params
    replica.move(old.copy(), replica.grads.copy())
    old.fill(np.nan)
    for run in (moved, still):
        run.evaluate(3)
        run.step(3)
    np.testing.assert_array_equal(replica.params, still.replica.params)


@pytest.mark.parametrize(
    ("name", "num_microbatches", "expected"),
    [("1f1b", 3, True), ("gpipe", 3, False), ("gpipe", 1, True), ("zb-h1", 1, True)],
)
def test_recordings_are_for_one_micro_batch_at_a_time(name: str, num_microbatches: int, expected: bool) -> None:
    assert is_one_by_one(make_schedule(name, 1, num_microbatches).programs[0]) == expected
