"""Models for sequences are cut between any two of their layers, and learn on every grid of ranks as one rank does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.base.shares import share
from hpdl_mpi.comm import Communicator, SingleCommunicator, run_threads
from hpdl_mpi.data import Batch
from hpdl_mpi.models import bert, gpt, gpt2_124m, llama, lstm_lm, rnn_lm, seq2seq, vit, vit_tiny
from hpdl_mpi.nn import CrossEntropy, Layer, Layout, Sequential, joined_members, member_shapes, members
from hpdl_mpi.optim import SGD, Adam
from hpdl_mpi.parallel import ProcessGrid, Replica, TrainingStep
from hpdl_mpi.parallel.pipeline import FAMILIES, Pipeline, make_schedule

VOCABULARY = 7
BATCH = 8
IGNORED = -1
MICRO_BATCHES = 2
SUMS = 1e-12
"""Some tens of terms of size 1 and less in another order, 1e-15, which two steps with a rate of 0.1 carry on."""


class Subject(NamedTuple):
    """A model, the shape of its samples, and whether sums of a tied weight come in another order where it is cut."""

    make: Callable[[], Layer]
    shape: tuple[Any, ...]
    tied: bool = False


TEXTS = ((5,), (4,))
SIZES = {"layers": 2, "heads": 2, "width": 8}
TRANSFORMER = SIZES | {"hidden": 12, "dropout": 0.1}

SUBJECTS = {
    "bert": Subject(lambda: bert(VOCABULARY, 5, **SIZES, dropout=0.1), (5,), tied=True),
    "gpt": Subject(lambda: gpt(VOCABULARY, 5, **SIZES, dropout=0.1), (5,), tied=True),
    "llama": Subject(lambda: llama(VOCABULARY, **SIZES, kv_heads=1, hidden=12, dropout=0.1), (5,)),
    "llama, tied": Subject(lambda: llama(VOCABULARY, **SIZES, hidden=12, tied=True), (5,), tied=True),
    "lstm_lm": Subject(lambda: lstm_lm(VOCABULARY, hidden=8, dropout=0.1), (5,)),
    "rnn_lm, tied": Subject(lambda: rnn_lm(VOCABULARY, hidden=8, tied=True), (5,), tied=True),
    "seq2seq": Subject(lambda: seq2seq(VOCABULARY, VOCABULARY, **TRANSFORMER), TEXTS),
    "seq2seq, norm first, tied": Subject(
        lambda: seq2seq(VOCABULARY, VOCABULARY, **TRANSFORMER, norm_first=True, tied=True), TEXTS, tied=True
    ),
    "vit": Subject(lambda: vit(6, 3, 4, **SIZES, dropout=0.1), (6, 6, 3)),
}


class Outcome(NamedTuple):
    """What two steps leave on a rank: parameters by full name, the loss of each step, and predictions."""

    arrays: dict[str, np.ndarray]
    losses: list[float]
    predictions: np.ndarray


def batch(subject: Subject, output_shape: tuple[int, ...], left_out: int = 0) -> tuple[Any, np.ndarray]:
    """Return inputs and targets: of images, or of tokens that end in padding, where no target counts.

    Of texts the last steps may be left out.
    """
    rng = np.random.default_rng(0)
    arrays = []
    for shape in member_shapes(subject.shape):
        if len(shape) == 3:
            arrays.append(rng.normal(size=(BATCH, *shape)))
        else:
            tokens = rng.integers(1, VOCABULARY, size=(BATCH, *shape))
            lengths = rng.integers(1, shape[0] + 1, size=(BATCH, 1))
            padded = np.where(np.arange(shape[0]) < lengths, tokens, 0)
            arrays.append(np.ascontiguousarray(padded[:, : shape[0] - left_out]))
    targets = rng.integers(output_shape[-1], size=(BATCH, *output_shape[:-1]))
    if targets.ndim > 1:
        targets = np.where(arrays[-1] == 0, IGNORED, targets[:, : arrays[-1].shape[1]])
    return joined_members(tuple(arrays)), targets


def train(comm: Communicator, subject: Subject, dp: int, *cuts: int, schedule: str = "1f1b") -> Outcome:
    """Take two steps on a grid of all ranks, the second one with shorter texts, and predict. Collective."""
    grid = ProcessGrid(comm, {"pp": comm.size // dp, "dp": dp})
    try:
        pipeline = Pipeline(grid.axis("pp"), make_schedule(schedule, comm.size // dp, MICRO_BATCHES), cuts)
        replica = Replica(subject.make(), subject.shape, SGD(0.1), dtype=np.float64, seed=0, pipeline=pipeline)
        learn = TrainingStep(replica, CrossEntropy(ignore_index=IGNORED), grid)
        ids = np.arange(BATCH) + 100
        own = slice(*share(BATCH, grid.coordinate("dp"), dp))
        losses = []
        for epoch in range(2):
            inputs, targets = batch(subject, replica.output_shape, left_out=epoch)
            part = joined_members(tuple(array[own] for array in members(inputs)))
            fed = Batch(
                part if pipeline.reads_inputs else None,
                targets[own] if pipeline.reads_targets else None,
                ids[own],
                BATCH,
                0,
                joined_members(tuple(array.shape[1:] for array in members(inputs))),
            )
            losses.append(learn(fed, epoch=epoch, lr=0.1).sums.loss)
        predictions = replica.predict(batch(subject, replica.output_shape)[0], ids)
        return Outcome(replica.layout.views(replica.params), losses, predictions)
    finally:
        grid.free()


def places() -> list[Any]:
    """Return each subject with each number of a layer at which a second stage can begin."""
    found = []
    for name, subject in SUBJECTS.items():
        model = subject.make()
        assert isinstance(model, Sequential)
        found += [pytest.param(subject, cut, id=f"{name}, cut at {cut}") for cut in range(1, len(model.children))]
    return found


@pytest.fixture(scope="module")
def alone() -> Callable[[Subject], Outcome]:
    """Return what returns the outcome of a subject on one rank, computed once."""
    found: dict[int, Outcome] = {}

    def outcome(subject: Subject) -> Outcome:
        if id(subject) not in found:
            found[id(subject)] = train(SingleCommunicator(), subject, 1)
        return found[id(subject)]

    return outcome


@pytest.mark.parametrize(("subject", "cut"), places())
def test_two_stages_train_as_one_rank_does(subject: Subject, cut: int, alone: Callable[[Subject], Outcome]) -> None:
    whole = alone(subject)
    first, second = run_threads(2, lambda comm: train(comm, subject, 1, cut))
    together = first.arrays | second.arrays
    assert together.keys() == whole.arrays.keys()
    assert subject.tied or not first.arrays.keys() & second.arrays.keys()
    tolerance = SUMS if subject.tied else 0
    for part in (first, second):
        for name, values in part.arrays.items():
            np.testing.assert_allclose(values, whole.arrays[name], rtol=0, atol=tolerance, err_msg=name)
        np.testing.assert_allclose(part.losses, whole.losses, rtol=SUMS if subject.tied else 0)
        np.testing.assert_allclose(part.predictions, whole.predictions, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
def test_pipelines_side_by_side_train_as_one_rank_does(subject: Subject, alone: Callable[[Subject], Outcome]) -> None:
    whole, model = alone(subject), subject.make()
    cut = len(model.children) // 2
    for part in run_threads(4, lambda comm: train(comm, subject, 2, cut)):
        for name, values in part.arrays.items():
            np.testing.assert_allclose(values, whole.arrays[name], rtol=0, atol=SUMS, err_msg=name)
        np.testing.assert_allclose(part.losses, whole.losses, rtol=SUMS)
        np.testing.assert_allclose(part.predictions, whole.predictions, rtol=0, atol=10 * SUMS)


def scheduled() -> list[Any]:
    """Return each subject with each other schedule for which it has layers enough, and cuts into parts of like size."""
    found = []
    for name, subject in SUBJECTS.items():
        layers = len(subject.make().children)
        for schedule in sorted(FAMILIES.keys() - {"1f1b"}):
            stages = 2 * FAMILIES[schedule].min_chunks
            cuts = [layers * stage // stages for stage in range(1, stages)]
            found += [pytest.param(subject, schedule, cuts, id=f"{name}, {schedule}")] * (layers >= stages)
    return found


@pytest.mark.parametrize(("subject", "schedule", "cuts"), scheduled())
def test_other_schedules_train_as_one_rank_does(
    subject: Subject, schedule: str, cuts: list[int], alone: Callable[[Subject], Outcome]
) -> None:
    whole = alone(subject)
    parts = run_threads(2, lambda comm: train(comm, subject, 1, *cuts, schedule=schedule))
    assert {name for part in parts for name in part.arrays} == whole.arrays.keys()
    for part in parts:
        for name, values in part.arrays.items():
            np.testing.assert_allclose(values, whole.arrays[name], rtol=0, atol=SUMS, err_msg=name)
        np.testing.assert_allclose(part.losses, whole.losses, rtol=SUMS)
        np.testing.assert_allclose(part.predictions, whole.predictions, rtol=0, atol=10 * SUMS)


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
def test_models_learn_a_few_samples_by_heart(subject: Subject) -> None:
    replica = Replica(subject.make(), subject.shape, Adam(), dtype=np.float64, seed=0)
    learn = TrainingStep(
        replica, CrossEntropy(ignore_index=IGNORED), ProcessGrid(SingleCommunicator(), {"pp": 1, "dp": 1})
    )
    inputs, targets = batch(subject, replica.output_shape)
    fed = Batch(inputs, targets, np.arange(BATCH), BATCH, 0)
    first, *_, last = (learn(fed, epoch=epoch, lr=0.02).sums.loss for epoch in range(60))
    assert last < first / 2


PUBLISHED: dict[str, tuple[Callable[[], Layer], tuple[Any, ...], int]] = {
    "bert": (bert, (512,), 109_514_298),
    "gpt2_124m": (gpt2_124m, (1024,), 124_439_808),
    "llama": (llama, (64,), 6_738_415_616),
    "llama, of eight heads of keys": (
        lambda: llama(128256, kv_heads=8, hidden=14336, base=5e5, eps=1e-5),
        (64,),
        8_030_261_248,
    ),
    "vit": (vit, (224, 224, 3), 86_567_656),
    "vit_tiny": (vit_tiny, (224, 224, 3), 5_717_416),
}


@pytest.mark.parametrize(("make", "shape", "num_parameters"), PUBLISHED.values(), ids=PUBLISHED)
def test_models_have_the_sizes_of_those_published(
    make: Callable[[], Layer], shape: tuple[Any, ...], num_parameters: int
) -> None:
    model = make()
    model.build(shape)
    assert Layout(model).num_parameters == num_parameters


def test_transformer_has_the_size_of_the_base_model() -> None:
    """Of section 3, but for the embedding of the source, which is one of its own here."""
    model = seq2seq(37000, 37000, layers=6, heads=8, width=512, hidden=2048, tied=True)
    model.build(((32,), (32,)))
    attention, perceptron, norm = 4 * 512 * 513, 2 * 512 * 2048 + 2048 + 512, 2 * 512
    layers = 6 * (attention + perceptron + 2 * norm) + 6 * (2 * attention + perceptron + 3 * norm)
    assert Layout(model).num_parameters == 2 * 37000 * 512 + layers + 2 * norm


IMPOSSIBLE: dict[str, tuple[Callable[[], Layer], str]] = {
    "no state": (lambda: lstm_lm(hidden=0, tied=True), "hidden: out of range. Found 0; expected an integer of at"),
    "a layer by name": (lambda: rnn_lm(layers="a"), "layers: out of range. Found 'a'; expected an integer of at least"),
    "half a layer": (lambda: seq2seq(layers=2.5), "layers: out of range. Found 2.5; expected an integer of at least 1"),
    "half a patch": (lambda: vit(20, 16), "size: images are not made of patches. Found 20; expected a multiple of 16"),
    "heads of no size": (lambda: llama(width=6, heads=4), "width: out of range. Found 6; expected a multiple of 4"),
    "odd heads": (lambda: llama(width=6, heads=2), "width: out of range. Found 6; expected a multiple of 4: rotary"),
    "heads of gpt": (lambda: gpt(width=64, heads=3), "width: out of range. Found 64; expected a multiple of 3, the"),
    "heads of seq2seq": (lambda: seq2seq(width=64, heads=5), "width: out of range. Found 64; expected a multiple of 5"),
    "no context": (lambda: bert(context=0), "context: out of range. Found 0; expected an integer of at least 1"),
    "no head": (lambda: vit(heads=0), "heads: out of range. Found 0; expected an integer of at least 1"),
}


@pytest.mark.parametrize(("make", "message"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_impossible_arguments_are_refused(make: Callable[[], Layer], message: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert message in str(caught.value)
