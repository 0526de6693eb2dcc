"""Statistics of layers: alike on all ranks, saved, restored, and the same wherever a layer lies."""

from __future__ import annotations

import numpy as np
import pytest

from hpdl_mpi import nn
from hpdl_mpi.base.errors import InputError, TrainingError
from hpdl_mpi.comm import Communicator, SingleCommunicator, run_threads
from hpdl_mpi.parallel import step
from hpdl_mpi.train import Parallel, Trainer
from hpdl_mpi.train.checkpoint import latest
from hpdl_mpi.train.signals import Stopped
from tests.training_cases import CLASSES, StopAfter, fit_images, make_trainer

Statistics = dict[str, np.ndarray]


def trainer_of(comm: Communicator, *, tracked: bool = True, loss: nn.Loss | None = None, **parallel: object) -> Trainer:
    norm = nn.BatchNorm2d(activation="relu") if tracked else nn.ReLU()
    model = nn.Sequential(nn.Conv2d(4, 3), nn.MaxPool2d(2), norm=norm, flat=nn.Flatten(), out=nn.Linear(CLASSES))
    changes = {"loss": loss} if loss else {}
    return make_trainer(comm, model=model, parallel=Parallel(threads=1, **parallel), **changes)


def statistics_of(trainer: Trainer) -> Statistics:
    replica = trainer.replica
    views = replica.statistics_layout.views(replica.statistics)
    return {name: values.copy() for name, values in views.items()}


def assert_same(found: Statistics, expected: Statistics, rtol: float = 0.0) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=rtol, err_msg=name)


@pytest.fixture
def whole(images, tmp_path):
    """A run on one rank with two micro-batches a step: its folder, its summary and its statistics."""
    trainer = trainer_of(SingleCommunicator(), num_microbatches=2)
    summary = fit_images(trainer, images, tmp_path / "whole")
    statistics = statistics_of(trainer)
    assert set(statistics) == {"norm.running_mean", "norm.running_var"}
    assert not np.allclose(statistics["norm.running_var"], 1.0)
    return tmp_path / "whole", summary, statistics


@pytest.mark.parametrize("nodes", [[0, 0, 0], [0, 1, 2], [0, 0, 1]])
def test_data_parallel_ranks_have_the_same(images, tmp_path, nodes):
    def run(comm: Communicator) -> tuple[Statistics, dict]:
        trainer = trainer_of(comm)
        summary = fit_images(trainer, images, tmp_path / "run")
        return statistics_of(trainer), summary

    results = run_threads(3, run, nodes=nodes)
    for statistics, summary in results:
        assert_same(statistics, results[0][0])
        assert summary["test_loss"] == results[0][1]["test_loss"]


@pytest.mark.parametrize("shares", [(8, 8), (3, 4), (0, 1)])
def test_a_step_of_several_ranks_tracks_the_mean_of_what_they_saw(images, monkeypatch, shares):
    """From the same start, one step on two ranks ends with the mean of what either share alone leads to."""

    def run(comm: Communicator) -> Statistics:
        trainer = trainer_of(comm)
        fit_images(trainer, images, epochs=None, steps=1, validate=None, global_batch_size=sum(shares))
        return statistics_of(trainer)

    together = run_threads(2, run)[0]
    monkeypatch.setattr(step, "_has_averages", lambda dp, statistics: False)
    with pytest.raises(TrainingError, match="hold other parameters"):
        run_threads(2, lambda comm: fit_images(trainer_of(comm), images, images.parent / "run", epochs=1))
    one, other = run_threads(2, run)
    for name, values in together.items():
        assert not np.array_equal(one[name], other[name])
        expected = (shares[0] * one[name] + shares[1] * other[name]) / sum(shares)
        np.testing.assert_allclose(values, expected, rtol=1e-12)


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1"])
def test_a_pipeline_tracks_what_one_rank_does(images, tmp_path, whole, schedule):
    def run(comm: Communicator) -> tuple[Statistics, dict]:
        trainer = trainer_of(comm, pp=2, num_microbatches=2, cuts=[2], schedule=schedule)
        summary = fit_images(trainer, images, tmp_path / "run")
        return statistics_of(trainer), summary

    (first, summary), (second, _) = run_threads(2, run)
    _, expected, statistics = whole
    assert first == {}
    assert_same(second, statistics, rtol=1e-12)
    assert summary["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-12)


def test_a_resumed_run_ends_with_the_same_bits(images, tmp_path, whole):
    _, summary, statistics = whole
    with pytest.raises(Stopped):
        fit_images(trainer_of(SingleCommunicator(), loss=StopAfter(13), num_microbatches=2), images, tmp_path / "part")
    trainer = trainer_of(SingleCommunicator(), num_microbatches=2)
    resumed = fit_images(trainer, images, tmp_path / "part", resume=True)
    assert resumed["parameters_digest"] == summary["parameters_digest"]
    assert resumed["test_loss"] == summary["test_loss"]
    assert_same(statistics_of(trainer), statistics)


def test_a_checkpoint_evaluates_as_the_run_did(images, whole):
    folder, summary, statistics = whole
    trainer = trainer_of(SingleCommunicator())
    trainer.load(latest(folder / "checkpoints"))
    assert_same(statistics_of(trainer), statistics)
    assert trainer.evaluate(images).loss == pytest.approx(summary["test_loss"], rel=1e-12)


def test_a_checkpoint_without_the_statistics_is_refused(images, tmp_path):
    plain = trainer_of(SingleCommunicator(), tracked=False)
    fit_images(plain, images, tmp_path / "plain", epochs=1)
    with pytest.raises(InputError, match="another model: they differ in norm"):
        trainer_of(SingleCommunicator()).load(latest(tmp_path / "plain" / "checkpoints"))


def test_predictions_take_the_running_values(images, whole):
    folder, _, _ = whole
    trainer = trainer_of(SingleCommunicator())
    trainer.load(latest(folder / "checkpoints"))
    samples = np.random.default_rng(0).integers(0, 200, (8, 6, 6, 1)).astype(np.uint8)
    together = trainer.predict(samples)
    apart = np.concatenate([trainer.predict(samples[i : i + 1]) for i in range(8)])
    np.testing.assert_allclose(apart, together, rtol=1e-12)
