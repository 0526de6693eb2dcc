"""Weights that are packed before each batch: they give the bits of those that each product packs for itself."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hpdl_mpi import nn, optim
from hpdl_mpi.base.memory import aligned
from hpdl_mpi.comm import Communicator, SingleCommunicator, run_threads
from hpdl_mpi.data import Batch
from hpdl_mpi.kernels import packed
from hpdl_mpi.models import gpt, llama, lstm_lm, mlp, seq2seq
from hpdl_mpi.parallel import ProcessGrid, Replica, TrainingStep
from hpdl_mpi.parallel.pipeline import FAMILIES, Feed, Pipeline, make_schedule, pieces

VOCABULARY, STEPS = 11, 5
SIZES = {"layers": 2, "heads": 2, "width": 8}


def of_text(make: Callable[[], nn.Layer]) -> tuple[Callable[[], nn.Layer], Any, Any]:
    return make, (STEPS,), lambda rng, n: rng.integers(1, VOCABULARY, (n, STEPS))


MODELS: dict[str, tuple[Callable[[], nn.Layer], Any, Any]] = {
    "gpt": of_text(lambda: gpt(VOCABULARY, STEPS, **SIZES)),
    "llama": of_text(lambda: llama(VOCABULARY, **SIZES, kv_heads=1, hidden=12)),
    "lstm_lm": of_text(lambda: lstm_lm(VOCABULARY, hidden=8)),
    "seq2seq": (
        lambda: seq2seq(VOCABULARY, VOCABULARY, **SIZES, hidden=12),
        ((4,), (STEPS,)),
        lambda rng, n: (rng.integers(1, VOCABULARY, (n, 4)), rng.integers(1, VOCABULARY, (n, STEPS))),
    ),
    "mlp": (lambda: mlp((8, 7), outputs=VOCABULARY), (6,), lambda rng, n: rng.normal(size=(n, 6))),
    "pixels": (
        lambda: nn.Sequential(
            *(nn.Conv2d(6, 1, groups=groups) for groups in (1, 3, 3)),
            nn.Flatten(),
            nn.Linear(16),
            nn.Linear(VOCABULARY),
        ),
        (5, 5, 3),
        lambda rng, n: rng.normal(size=(n, 5, 5, 3)),
    ),
}


def train(comm: Communicator, name: str, schedule: str, packing_ranks: int | None, num_microbatches: int = 3) -> Any:
    """Train, with micro-batches some of which have too few rows.

    Returns
    -------
    sums : list of LossSums
    params : array
    found : int
        How many products found weights packed.
    """
    make, input_shape, make_inputs = MODELS[name]
    plan = make_schedule(schedule, comm.size, num_microbatches)
    model = make()
    count = len(pieces(model))
    cuts = tuple(count * stage // plan.num_stages for stage in range(1, plan.num_stages))
    pipeline = Pipeline(comm, plan, cuts, packing_ranks=packing_ranks)
    replica = Replica(model, input_shape, optim.Adam(0.01), dtype=np.float64, seed=0, pipeline=pipeline)
    replica.pool.poison = True
    learn = TrainingStep(replica, nn.CrossEntropy(), ProcessGrid(comm, {"pp": comm.size, "dp": 1}))
    packer, found = learn._executor._packer, []
    if packer is not None:
        find = packer.find
        packer.find = lambda *matrix: found.append(find(*matrix)) or found[-1]
    rng = np.random.default_rng(0)
    sums = []
    for step, rows in enumerate((8, 8, 4, 8, 4, 4, 8)):
        n = rows * num_microbatches
        shape = (n,) if name in ("mlp", "pixels") else (n, STEPS)
        targets = rng.integers(1, VOCABULARY, shape)
        batch = Batch(make_inputs(rng, n), targets, np.arange(n) + n * step, global_size=n, offset=0)
        sums.append(learn(batch, epoch=0, lr=0.01).sums)
    return sums, replica.params.copy(), sum(packed is not None for packed in found)


@pytest.mark.parametrize("pp", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_a_run_has_the_bits_of_one_without(name: str, pp: int) -> None:
    found = run_threads(pp, lambda comm: train(comm, name, "1f1b", packing_ranks=None))
    expected = run_threads(pp, lambda comm: train(comm, name, "1f1b", packing_ranks=0))
    for mine, other in zip(found, expected, strict=True):
        assert mine[0] == other[0]
        np.testing.assert_array_equal(mine[1], other[1])
        assert other[2] == 0
    assert found[-1][2] > 0


@pytest.mark.parametrize("schedule", FAMILIES)
def test_every_schedule_has_the_same_bits(schedule: str) -> None:
    found, expected = (
        run_threads(2, lambda comm, packs=packs: train(comm, "gpt", schedule, packing_ranks=packs, num_microbatches=4))
        for packs in (None, 0)
    )
    for mine, other in zip(found, expected, strict=True):
        assert mine[0] == other[0]
        np.testing.assert_array_equal(mine[1], other[1])
        assert mine[2] >= 4 * 3 * 2 > other[2] == 0  # micro-batches, steps, and both ways of one matrix at least


def test_nothing_is_packed_for_one_micro_batch() -> None:
    ((_, _, found),) = run_threads(1, lambda comm: train(comm, "gpt", "1f1b", packing_ranks=None, num_microbatches=1))
    assert found == 0


@pytest.mark.parametrize("num_microbatches", [2, 3])
def test_they_go_with_the_step_and_with_a_lone_batch(num_microbatches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[np.ndarray]] = []

    def remembered(*arguments: Any) -> np.ndarray:
        array = aligned(*arguments)
        made.append(weakref.ref(array))
        return array

    monkeypatch.setattr(packed, "aligned", remembered)
    pipeline = Pipeline(schedule=make_schedule("1f1b", 1, num_microbatches))
    replica = Replica(
        gpt(VOCABULARY, STEPS, **SIZES), (STEPS,), optim.SGD(0.1), dtype=np.float32, seed=0, pipeline=pipeline
    )
    learn = TrainingStep(replica, nn.CrossEntropy(), ProcessGrid(SingleCommunicator(), {"pp": 1, "dp": 1}))
    tokens = np.ones((12, STEPS), np.int64)
    gc.disable()  # what is freed late, with a circle of objects, is in the way of what is packed next
    try:
        learn(Batch(tokens, tokens, np.arange(12), global_size=12, offset=0), epoch=0, lr=0.1)
        assert made
        assert all(array() is not None for array in made)
        learn.free()
        assert all(array() is None for array in made)
        made.clear()
        replica.learn(Feed(np.arange(12), tokens, tokens), nn.CrossEntropy())
        assert made
        assert all(array() is None for array in made)
    finally:
        gc.enable()
