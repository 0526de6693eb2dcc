"""Micro-batches whose actions are replayed: they give the bits of ordinary ones, whatever comes between them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from hpdl_mpi import nn, optim
from hpdl_mpi.base.errors import BadSample
from hpdl_mpi.comm import Communicator, SingleCommunicator, run_threads
from hpdl_mpi.data import Batch
from hpdl_mpi.kernels.gemm import workspace
from hpdl_mpi.kernels.recording import Recording
from hpdl_mpi.kernels.threads import set_threads
from hpdl_mpi.models import bert, gpt, llama, mlp, seq2seq
from hpdl_mpi.parallel import ProcessGrid, Replica, TrainingStep
from hpdl_mpi.parallel.pipeline import Feed, Op, Pipeline, make_schedule
from hpdl_mpi.parallel.pipeline.replays import _MOST, is_one_by_one
from tests.threads import needs_two_threads

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
    assert replays >= 20
    assert count_replays() == replays


@needs_two_threads
def test_other_numbers_of_threads_have_recordings_of_their_own(
    monkeypatch: pytest.MonkeyPatch, count_replays: Callable[[], int]
) -> None:
    def train() -> np.ndarray:
        run = Run("llama")
        for threads in (1, 1, 2, 2, 1):
            set_threads(threads)
            run.step(3)
        return run.replica.params

    params = train()
    assert count_replays() == 2 * 3
    monkeypatch.setattr("hpdl_mpi.parallel.pipeline.replays.is_replayable", lambda model: False)
    np.testing.assert_array_equal(params, train())


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
        run.learn._executor._replays._found.popitem()  # as if another epoch had come
    assert run.replica.pool.bytes_held == held
    assert run.replica.pool.bytes_live == 0
    assert count_replays() > 0


def test_recordings_are_bounded_and_those_that_there_are_stay() -> None:
    run = Run("mlp")
    for n in range(1, _MOST + 5):
        run.step(n)
    assert len(run.learn._executor._replays._found) == _MOST
    run.step(3, epoch=1)
    assert len(run.learn._executor._replays._found) == 1, "those of an epoch that is over are of no use"


@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize(("of", "what"), [("inputs", "a token is outside the vocabulary"), ("targets", "a label is")])
def test_bad_samples_are_found_in_a_replay_too_and_leave_the_pool_to_others(
    of: str, what: str, steps: int, count_replays: Callable[[], int]
) -> None:
    run = Run("gpt")
    for _ in range(steps):
        run.step(3)
    batch = run.batch(3)
    getattr(batch, of)[1, 2] = VOCABULARY
    with pytest.raises(BadSample, match=what) as caught:
        run.learn(batch, epoch=0, lr=0.01)
    assert caught.value.sample == batch.sample_ids[1]
    assert run.replica.pool.bytes_live == 0
    before = count_replays()
    for _ in range(2):
        run.replica.predict(run.batch(3).inputs, np.arange(3))
    assert count_replays() == before + 1


def test_each_thread_has_recordings_with_a_workspace_of_its_own() -> None:
    runs = [Run("mlp"), Run("mlp")]
    batch = runs[0].batch(64)
    expected = runs[0].replica.predict(batch.inputs, batch.sample_ids)
    runs[1].replica.predict(batch.inputs, batch.sample_ids)
    workspaces = []

    def predict(run: Run) -> None:
        for _ in range(2):
            np.testing.assert_array_equal(run.replica.predict(batch.inputs, batch.sample_ids), expected)
        (replay,) = (
            replay for key, replay in run.replica._predictor._replays._found.items() if threading.get_ident() in key
        )
        arguments = [a for _, call in replay._recordings[Op.F]._calls for a in call if isinstance(a, np.ndarray)]
        workspaces.append(any(array is workspace(np.dtype(np.float64)) for array in arguments))

    threads = [threading.Thread(target=predict, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert workspaces == [True, True]


def test_a_loss_with_a_call_of_its_own_is_called_each_time() -> None:
    calls = []

    class Counting(nn.CrossEntropy):
        def __call__(self, *arguments: Any) -> Any:
            calls.append(arguments)
            return super().__call__(*arguments)

    run = Run("mlp")
    evaluator = run.replica.evaluator(Counting())
    for _ in range(3):
        evaluator.run(Feed.of(run.batch(3)))
    assert len(calls) == 3


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
