"""Runs whose samples are augmented: the same on any ranks, resumed to the bit, and evaluated as they are."""

from __future__ import annotations

import json
from functools import partial

import h5py
import numpy as np
import pytest

from hpdl_mpi import nn
from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import Communicator, SingleCommunicator, run_threads
from hpdl_mpi.data import Augment, Dataset, Jitter, Transform
from hpdl_mpi.train import Parallel, open_run, run_job
from hpdl_mpi.train.checkpoint import latest
from hpdl_mpi.train.signals import Stopped
from tests.checkpoint_cases import rewrite_manifest
from tests.training_cases import (
    CLASSES,
    NUM_SAMPLES,
    StopAfter,
    fit_images,
    make_trainer,
    metrics_but_times,
    step_losses,
    write_images,
)

AUGMENT = Augment(flip=True, crop=(5, 6), pad=1, jitter=Jitter(brightness=0.2, contrast=0.2), cutout=2, mixup=0.4)
JOB = """
name = "augmented"
[model]
name = "lenet"
channels = [2, 3]
hidden = 8
outputs = 5
[data]
train = "{data}"
test = "{data}"
[data.transform]
scale = 0.00392156862745098
[data.augment]
flip = true
resized_crop = [16, 20]
jitter = {{ brightness = 0.2 }}
mixup = 0.2
[training]
epochs = 2
global_batch_size = 16
loss = "cross_entropy"
[optimizer]
name = "sgd"
lr = 0.05
[parallel]
threads = 1
"""


@pytest.fixture
def whole(images, tmp_path):
    """A run on one rank: its folder and its summary."""
    folder = tmp_path / "whole"
    return folder, fit_images(make_trainer(SingleCommunicator()), images, folder, augment=AUGMENT)


def test_a_run_learns_from_other_samples_than_one_without(images, alone, whole):
    assert whole[1]["parameters_digest"] != alone[1]["parameters_digest"]
    assert whole[1]["steps"] == alone[1]["steps"]


def test_a_run_that_is_done_again_ends_with_the_same_bits(images, tmp_path, whole):
    again = fit_images(make_trainer(SingleCommunicator()), images, tmp_path / "again", augment=AUGMENT)
    assert again["parameters_digest"] == whole[1]["parameters_digest"]
    assert metrics_but_times(tmp_path / "again") == metrics_but_times(whole[0])


@pytest.mark.parametrize("step", [2, 4, 7])
def test_a_run_stopped_in_mid_epoch_and_resumed_ends_with_the_same_bits(images, tmp_path, whole, step):
    folder = tmp_path / "stopped"
    with pytest.raises(Stopped):
        fit_images(make_trainer(SingleCommunicator(), loss=StopAfter(step + 1)), images, folder, augment=AUGMENT)
    resumed = fit_images(make_trainer(SingleCommunicator()), images, folder, augment=AUGMENT, resume=True)
    assert resumed["parameters_digest"] == whole[1]["parameters_digest"]
    assert metrics_but_times(folder) == metrics_but_times(whole[0])


@pytest.mark.parametrize("parallel", [{}, {"pp": 3, "num_microbatches": 3}, {"num_microbatches": 2}], ids=str)
def test_three_ranks_take_the_steps_of_one(images, tmp_path, whole, parallel):
    def run(comm: Communicator) -> dict:
        trainer = make_trainer(comm, parallel=Parallel(threads=1, **parallel))
        return fit_images(trainer, images, tmp_path / "shared", augment=AUGMENT)

    summary = run_threads(3, run)[0]
    np.testing.assert_allclose(step_losses(tmp_path / "shared"), step_losses(whole[0]), rtol=1e-9)
    assert summary["test_loss"] == pytest.approx(whole[1]["test_loss"], rel=1e-9)


def test_a_run_does_not_go_on_with_another_augmentation(images, tmp_path):
    with pytest.raises(Stopped):
        fit_images(make_trainer(SingleCommunicator(), loss=StopAfter(3)), images, tmp_path / "run", augment=AUGMENT)
    changed = Augment(**vars(AUGMENT) | {"mixup": 0.3})
    with pytest.raises(InputError, match=r"data\.augment: a run cannot change this when it goes on\. Found Augment"):
        fit_images(make_trainer(SingleCommunicator()), images, tmp_path / "run", augment=changed, resume=True)


def test_a_loaded_model_evaluates_and_predicts_in_the_middle_of_images(images, whole):
    folder, summary = whole
    trainer = make_trainer(SingleCommunicator())
    trainer.load(latest(folder / "checkpoints"))
    assert trainer.replica.input_shape == (5, 6, 1)
    assert trainer.evaluate(images).loss == pytest.approx(summary["test_loss"], rel=1e-12)
    with Dataset.open(images) as dataset:
        raw = next(dataset.blocks("inputs")).copy()
    expected = trainer.replica.predict(raw[:, 0:5].astype(np.float64) / 255, np.arange(len(raw)))
    np.testing.assert_allclose(trainer.predict(raw), expected, rtol=1e-12)


def test_a_checkpoint_from_before_there_was_augmentation_is_taken(images, alone):
    path = latest(alone[0] / "checkpoints")
    progress = json.loads((path / "manifest.json").read_text())["progress"]
    del progress["recipe"]["augment"]
    rewrite_manifest(path, progress=progress)
    trainer = make_trainer(SingleCommunicator())
    trainer.load(path)
    assert trainer.evaluate(images).loss == pytest.approx(alone[1]["test_loss"], rel=1e-12)


def test_a_job_that_augments_runs_again_from_its_folder_with_the_same_bits(images, tmp_path):
    (tmp_path / "job.toml").write_text(JOB.format(data=images))
    comm = SingleCommunicator()
    first = run_job(tmp_path / "job.toml", comm, run_dir=tmp_path / "first")
    saved = json.loads((tmp_path / "first" / "job.json").read_text())
    assert saved["data"]["augment"]["resized_crop"] == [16, 20]
    again = run_job(tmp_path / "first" / "job.json", comm, run_dir=tmp_path / "again")
    assert again["parameters_digest"] == first["parameters_digest"]
    trainer, _ = open_run(tmp_path / "first", comm)
    assert trainer.replica.input_shape == (16, 20, 1)
    assert trainer.evaluate(images).loss == pytest.approx(first["test_loss"], rel=1e-6)


@pytest.mark.parametrize("small", ["train", "test"])
def test_images_smaller_than_the_crop_are_named_with_their_file(tmp_path, small):
    paths = {part: write_images(tmp_path / f"{part}.h5") for part in ("train", "test")}
    for part, path in paths.items():
        if part != small:
            with h5py.File(path, "r+") as file:
                del file["x"]
                file["x"] = np.zeros((NUM_SAMPLES, 7, 8, 1), np.uint8)
    trainer = make_trainer(SingleCommunicator())
    message = (
        rf"{small}\.h5: images are smaller than the crop\. Found 6 x 6 pixels \(height x width\), and a border of 1; "
        "expected at least 9"
    )
    with pytest.raises(InputError, match=message) as caught:
        fit_images(trainer, paths["train"], validate=paths["test"], augment=Augment(crop=9, pad=1))
    assert caught.value.exit_code == 2


def test_values_are_mixed_where_a_regression_learns(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(1))
    losses = []
    for mixup in (None, 0.5):
        trainer = make_trainer(SingleCommunicator(), model=model, loss=nn.MeanSquaredError(), clip_norm=None)
        summary = fit_images(
            trainer, images, augment=Augment(mixup=mixup), target_transform=Transform(scale=1 / CLASSES)
        )
        losses.append(summary["train_loss"])
        trainer.close()
    assert losses[0] != losses[1]


@pytest.mark.parametrize("outputs", [2, 4])
def test_a_job_that_fails_before_its_first_step_leaves_its_folder_to_another(images, tmp_path, outputs):
    (tmp_path / "job.toml").write_text(JOB.format(data=images))
    run = partial(run_job, tmp_path / "job.toml", SingleCommunicator(), run_dir=tmp_path / "run")
    with pytest.raises(InputError, match="a label is outside the classes"):
        run(overrides=[f"model.outputs={outputs}"])
    assert run()["steps"] > 0
    with pytest.raises(InputError, match="the run folder holds a run already"):
        run()
