"""The moving average of a run's weights: evaluated, saved, resumed, and the same on any grid."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from hpdl_mpi import nn
from hpdl_mpi.base.errors import InputError, TrainingError
from hpdl_mpi.comm import Communicator, SingleCommunicator, run_threads
from hpdl_mpi.train import Parallel, Trainer
from hpdl_mpi.train.checkpoint import latest
from hpdl_mpi.train.signals import Stopped
from tests.training_cases import CLASSES, StopAfter, fit_images, make_trainer, metrics_but_times, read_metrics

DECAY = 0.8
Arrays = dict[str, np.ndarray]


def trainer_of(
    comm: Communicator, *, ema: float | None = DECAY, loss: nn.Loss | None = None, **parallel: object
) -> Trainer:
    layers = {
        "conv": nn.Conv2d(4, 3),
        "norm": nn.BatchNorm2d(activation="relu"),
        "flat": nn.Flatten(),
        "fc": nn.Linear(CLASSES),
    }
    changes = {"loss": loss} if loss else {}
    return make_trainer(
        comm, model=nn.Sequential(**layers), ema=ema, parallel=Parallel(threads=1, **parallel), **changes
    )


def averages_of(trainer: Trainer) -> Arrays:
    replica = trainer.replica
    params, statistics = replica.average.params, replica.average.statistics
    return replica.layout.views(params) | replica.statistics_layout.views(statistics)


def weights_of(trainer: Trainer) -> Arrays:
    replica = trainer.replica
    return replica.layout.views(replica.params) | replica.statistics_layout.views(replica.statistics)


def assert_same(found: Arrays, expected: Arrays, rtol: float = 0.0) -> None:
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=rtol, atol=rtol, err_msg=name)


@pytest.fixture
def whole(images, tmp_path):
    """A run on one rank with two micro-batches a step: its folder, summary and trainer."""
    trainer = trainer_of(SingleCommunicator(), num_microbatches=2)
    summary = fit_images(trainer, images, tmp_path / "whole")
    return tmp_path / "whole", summary, trainer


def test_what_is_evaluated_is_the_average(images, whole):
    folder, summary, trainer = whole
    assert {line["weights"] for line in read_metrics(folder, "test")} == {"ema"}
    assert summary["ema"] == DECAY
    raw, averaged = (trainer_of(SingleCommunicator(), num_microbatches=2) for _ in range(2))
    path = latest(folder / "checkpoints")
    averaged.load(path)
    raw.load(path, ema=False)
    assert (averaged.averaged, raw.averaged) == (True, False)
    assert_same(weights_of(averaged), averages_of(trainer))
    assert_same(weights_of(raw), weights_of(trainer))
    assert averaged.evaluate(images) == trainer.evaluate(images)
    assert trainer.evaluate(images).loss == pytest.approx(summary["test_loss"], rel=1e-12)
    assert raw.evaluate(images).loss != trainer.evaluate(images).loss
    with h5py.File(images) as file:
        x = file["x"][()]
    np.testing.assert_array_equal(averaged.predict(x), trainer.predict(x))
    assert not np.allclose(raw.predict(x), trainer.predict(x))


def test_output_says_what_is_evaluated(images, capsys):
    for ema, said in ((DECAY, " test (ema) loss "), (None, " test loss ")):
        fit_images(trainer_of(SingleCommunicator(), ema=ema), images, epochs=1)
        assert said in capsys.readouterr().out


@pytest.mark.parametrize("calls", [2, 6, 9])
def test_a_resumed_run_has_the_same_bits(images, tmp_path, whole, calls):
    folder, summary, trainer = whole
    with pytest.raises(Stopped):
        fit_images(
            trainer_of(SingleCommunicator(), loss=StopAfter(2 * calls + 2), num_microbatches=2), images, tmp_path / "p"
        )
    resumed = trainer_of(SingleCommunicator(), num_microbatches=2)
    again = fit_images(resumed, images, tmp_path / "p", resume=True)
    assert again["parameters_digest"] == summary["parameters_digest"]
    assert_same(averages_of(resumed), averages_of(trainer))
    assert metrics_but_times(tmp_path / "p") == metrics_but_times(folder)


@pytest.mark.parametrize(("num_ranks", "parallel"), [(2, {"pp": 2, "cuts": [2]}), (4, {"pp": 2, "cuts": [3]})])
def test_a_run_goes_on_upon_any_grid(images, tmp_path, num_ranks, parallel):
    """Half of it on one rank, half on pipelines; their averages load on one rank again."""
    folder = tmp_path / "run"
    fit_images(trainer_of(SingleCommunicator(), num_microbatches=2), images, folder, epochs=1)
    first = trainer_of(SingleCommunicator())
    first.load(latest(folder / "checkpoints"))

    def resume(comm: Communicator) -> tuple[Arrays, float]:
        restored = trainer_of(comm, num_microbatches=2, **parallel)
        summary = fit_images(restored, images, folder, resume=True, epochs=1)
        assert_same(weights_of(first), averages_of(restored))  # nothing was left to do
        trainer = trainer_of(comm, num_microbatches=2, **parallel)
        summary = fit_images(trainer, images, folder, resume=True, epochs=2)
        return averages_of(trainer), summary["test_loss"]

    parts = run_threads(num_ranks, resume)
    loaded = trainer_of(SingleCommunicator())
    loaded.load(latest(folder / "checkpoints"))
    for averages, test_loss in parts:
        assert_same(weights_of(loaded), averages)
        assert loaded.evaluate(images).loss == pytest.approx(test_loss, rel=1e-12)


def test_data_parallel_ranks_and_pipelines_average_as_one_rank_does(images, whole):
    _, summary, trainer = whole

    def fit(comm: Communicator) -> tuple[Arrays, float]:
        other = trainer_of(comm, pp=2, num_microbatches=2, cuts=[2])
        test_loss = fit_images(other, images)["test_loss"]
        return averages_of(other), test_loss

    for averages, test_loss in run_threads(2, fit):
        # float64, 12 steps: sums of at most 50 terms in another order differ by far less than 1e-9.
        assert_same({name: averages_of(trainer)[name] for name in averages}, averages, rtol=1e-9)
        assert test_loss == pytest.approx(summary["test_loss"], rel=1e-9)


@pytest.mark.parametrize(("before", "after"), [(None, DECAY), (DECAY, None), (DECAY, 0.9)])
def test_a_run_does_not_go_on_with_another_average(images, tmp_path, before, after):
    fit_images(trainer_of(SingleCommunicator(), ema=before), images, tmp_path / "run", epochs=1)
    with pytest.raises(InputError, match=r"training\.ema"):
        fit_images(trainer_of(SingleCommunicator(), ema=after), images, tmp_path / "run", resume=True)


def test_averages_that_have_drifted_apart_are_found(images, tmp_path):
    def run(comm: Communicator) -> None:
        trainer = trainer_of(comm)

        class Spoil(nn.CrossEntropy):
            def __call__(self, *arguments):
                average = trainer.replica.average if trainer._assembly.built else None
                if average is not None and comm.rank == 1:
                    average.params[0] += 1e-3
                return super().__call__(*arguments)

        trainer.loss = trainer._assembly.loss = Spoil()
        with pytest.raises(TrainingError, match=r"ranks \[1\] hold other parameters"):
            fit_images(trainer, images, tmp_path / "run")

    run_threads(2, run)
