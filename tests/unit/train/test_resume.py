"""Runs that are stopped and go on: exact when resumed, and nothing is lost."""

from __future__ import annotations

import os
import signal

import h5py
import pytest

from hpdl_mpi import optim
from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import SingleCommunicator
from hpdl_mpi.data import Transform
from hpdl_mpi.train import Checkpoint
from hpdl_mpi.train.signals import Stopped
from tests.training_cases import (
    NUM_SAMPLES,
    StopAfter,
    fit_images,
    make_trainer,
    metrics_but_times,
    read_metrics,
    step_losses,
    write_images,
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
@pytest.mark.parametrize("step", [1, 4, 6, 8, 11])
def test_a_stopped_and_resumed_run_ends_with_the_same_bits(alone, images, tmp_path, step, number):
    folder = tmp_path / "stopped"
    settings = {"checkpoint": Checkpoint(signal="SIGUSR2")}
    rehearsal = 1
    trainer = make_trainer(SingleCommunicator(), loss=StopAfter(step + rehearsal, number))
    with pytest.raises(Stopped, match=f"after step {step}.*--resume") as caught:
        fit_images(trainer, images, folder, **settings)
    assert caught.value.exit_code == 128 + number
    assert not (folder / "summary.json").exists()
    resumed = fit_images(make_trainer(SingleCommunicator()), images, folder, resume=True, **settings)
    assert resumed["parameters_digest"] == alone[1]["parameters_digest"]
    assert resumed["train_loss"] == alone[1]["train_loss"]
    assert metrics_but_times(folder) == metrics_but_times(alone[0])


@pytest.mark.parametrize("step", [3, 4, 6])
def test_no_evaluation_is_lost_by_a_stop(images, tmp_path, step):
    whole = tmp_path / "whole"
    fit_images(make_trainer(SingleCommunicator()), images, whole, eval_every=3)
    folder = tmp_path / "stopped"
    with pytest.raises(Stopped):
        fit_images(make_trainer(SingleCommunicator(), loss=StopAfter(step + 1)), images, folder, eval_every=3)
    fit_images(make_trainer(SingleCommunicator()), images, folder, eval_every=3, resume=True)
    assert [line["step"] for line in read_metrics(whole, "test")] == [3, 6, 9, 12]
    assert metrics_but_times(folder) == metrics_but_times(whole)


@pytest.mark.parametrize(
    ("trainer", "fit", "key"),
    [
        ({"seed": 1}, {}, "seed"),
        ({"dtype": "float32"}, {}, r"training\.dtype"),
        ({"optimizer": optim.SGD(0.1)}, {}, "optimizer's state"),
        ({}, {"global_batch_size": 8}, r"training\.global_batch_size"),
        ({}, {"shuffle": "none"}, r"data\.shuffle"),
        ({}, {"transform": Transform(scale=1 / 128)}, r"data\.transform"),
    ],
)
def test_a_run_does_not_go_on_with_another_recipe(images, tmp_path, trainer, fit, key):
    with pytest.raises(Stopped):
        fit_images(make_trainer(SingleCommunicator(), loss=StopAfter(7)), images, tmp_path / "run")
    with pytest.raises(InputError, match=rf"{key}: a run cannot change this when it goes on"):
        fit_images(make_trainer(SingleCommunicator(), **trainer), images, tmp_path / "run", resume=True, **fit)


def test_metrics_after_the_last_checkpoint_are_dropped_when_resumed(alone, images, tmp_path):
    folder = tmp_path / "crashed"
    with pytest.raises(Stopped):
        fit_images(make_trainer(SingleCommunicator(), loss=StopAfter(7)), images, folder)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(
            '{"kind": "step", "step": 7, "lost": 1}\n{"kind": "step", "step": 6, "lost": tr'
        )  # what a crash leaves
    fit_images(make_trainer(SingleCommunicator()), images, folder, resume=True)
    assert metrics_but_times(folder) == metrics_but_times(alone[0])


def test_a_signal_before_the_first_step_stops_the_run_after_it(images, tmp_path):
    trainer = make_trainer(SingleCommunicator())
    build = trainer.model.build
    trainer.model.build = lambda shape: (os.kill(os.getpid(), signal.SIGUSR1), build(shape))[1]
    with pytest.raises(Stopped, match="stopped by SIGUSR1 after step 1"):
        fit_images(trainer, images, tmp_path / "run")


def test_handlers_of_signals_are_put_back(images):
    before = signal.getsignal(signal.SIGTERM)
    fit_images(make_trainer(SingleCommunicator()), images, epochs=1)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_finished_run_can_be_resumed_for_longer(images, tmp_path):
    # A constant rate: a schedule of the whole length would differ from the start.
    settings = {"lr_schedule": optim.Constant()}
    whole = fit_images(make_trainer(SingleCommunicator(), **settings), images, tmp_path / "whole", epochs=3)
    fit_images(make_trainer(SingleCommunicator(), **settings), images, tmp_path / "parts", epochs=1)
    parts = fit_images(make_trainer(SingleCommunicator(), **settings), images, tmp_path / "parts", resume=True)
    assert parts["parameters_digest"] == whole["parameters_digest"]


def test_a_signal_in_the_last_step_lets_the_run_end(alone, images, tmp_path):
    summary = fit_images(make_trainer(SingleCommunicator(), loss=StopAfter(12 + 1)), images, tmp_path / "run")
    assert summary["parameters_digest"] == alone[1]["parameters_digest"]
    assert summary["epochs"] == 3


@pytest.mark.parametrize("every", [None, 4])
def test_an_epoch_that_a_checkpoint_ends_counts_when_resumed(alone, images, tmp_path, every):
    folder = tmp_path / "stopped"
    settings = {"checkpoint": Checkpoint(every=every)}
    with pytest.raises(Stopped, match="after step 4"):
        fit_images(make_trainer(SingleCommunicator(), loss=StopAfter(4 + 1)), images, folder, **settings)
    resumed = fit_images(make_trainer(SingleCommunicator()), images, folder, resume=True, **settings)
    for key in ("epochs", "train_loss", "test_loss", "parameters_digest"):
        assert resumed[key] == alone[1][key]
    assert [line["epoch"] for line in read_metrics(folder, "epoch")] == [1, 2, 3]


def test_a_run_that_failed_before_its_first_step_can_be_started_again(images, tmp_path):
    with h5py.File(images, "r+") as file:
        label, file["y"][:] = file["y"][()], 77
    with pytest.raises(InputError, match="outside the classes"):
        fit_images(make_trainer(SingleCommunicator()), images, tmp_path / "run")
    with h5py.File(images, "r+") as file:
        file["y"][:] = label
    assert fit_images(make_trainer(SingleCommunicator()), images, tmp_path / "run")["steps"] == 12


def test_resuming_what_has_not_begun_begins_it(alone, images, tmp_path):
    summary = fit_images(make_trainer(SingleCommunicator()), images, tmp_path / "new", resume=True)
    assert summary["parameters_digest"] == alone[1]["parameters_digest"]


def test_a_run_goes_on_with_moved_data_but_not_with_others(images, tmp_path):
    folder = tmp_path / "run"
    fit_images(make_trainer(SingleCommunicator()), images, folder, epochs=1)
    moved = images.rename(tmp_path / "moved.h5")
    assert fit_images(make_trainer(SingleCommunicator()), moved, folder, epochs=2, resume=True)["epochs"] == 2
    others = write_images(tmp_path / "others.h5", num_samples=NUM_SAMPLES + 1)
    with pytest.raises(InputError, match=r"others\.h5: the training data are not those that the run began with"):
        fit_images(make_trainer(SingleCommunicator()), others, folder, epochs=3, resume=True)


def test_lost_metrics_do_not_spoil_what_follows(images, tmp_path):
    folder = tmp_path / "run"
    fit_images(make_trainer(SingleCommunicator()), images, folder, epochs=1)
    (folder / "metrics.jsonl").unlink()
    fit_images(make_trainer(SingleCommunicator()), images, folder, resume=True)
    assert len(step_losses(folder)) == 8
