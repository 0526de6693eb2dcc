"""Training on the ranks of an MPI job: as on one, exactly resumed, and stopped together."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest

from hpdl_mpi import nn
from hpdl_mpi.comm import SingleCommunicator
from hpdl_mpi.data import Augment, Jitter
from hpdl_mpi.train.signals import Stopped
from tests.training_cases import CLASSES, fit_images, make_trainer, step_losses, write_images

pytestmark = pytest.mark.mpi


@pytest.fixture
def shared_folder(world):
    """A folder that all ranks see, with the images of `training_cases` in it."""
    path = Path(world.bcast_obj(tempfile.mkdtemp() if world.rank == 0 else None))
    if world.rank == 0:
        write_images(path / "images.h5")
    world.barrier()
    yield path
    world.barrier()
    if world.rank == 0:
        shutil.rmtree(path)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-4)])
def test_all_ranks_together_take_the_steps_of_one(world, shared_folder, dtype, tolerance):
    images = shared_folder / "images.h5"
    fit_images(make_trainer(world, dtype=dtype), images, shared_folder / "together")
    if world.rank == 0:
        fit_images(make_trainer(SingleCommunicator(), dtype=dtype), images, shared_folder / "alone")
        found, expected = step_losses(shared_folder / "together"), step_losses(shared_folder / "alone")
        np.testing.assert_allclose(found, expected, rtol=tolerance)


def test_all_ranks_together_augment_as_one_does(world, shared_folder):
    images = shared_folder / "images.h5"
    augment = Augment(flip=True, crop=5, jitter=Jitter(brightness=0.3), cutout=2, mixup=0.3)
    fit_images(make_trainer(world), images, shared_folder / "together", augment=augment)
    if world.rank == 0:
        fit_images(make_trainer(SingleCommunicator()), images, shared_folder / "alone", augment=augment)
        found, expected = step_losses(shared_folder / "together"), step_losses(shared_folder / "alone")
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_signal_to_one_rank_stops_all_and_the_run_resumes_exactly(world, shared_folder):
    images = shared_folder / "images.h5"
    expected = fit_images(make_trainer(world), images)
    trainer = make_trainer(world)
    compute = trainer.loss._evaluate
    calls = 0

    def interrupt(*arguments):
        nonlocal calls
        calls += 1
        if calls == 7 and world.rank == world.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return compute(*arguments)

    trainer.loss._evaluate = interrupt
    with pytest.raises(Stopped, match="stopped by SIGTERM after step"):
        fit_images(trainer, images, shared_folder / "run")
    resumed = fit_images(make_trainer(world), images, shared_folder / "run", resume=True)
    assert resumed["parameters_digest"] == expected["parameters_digest"]


def test_every_rank_has_the_same_parameters_and_summary(world, shared_folder):
    summary = fit_images(make_trainer(world), shared_folder / "images.h5")
    digests = world.allgather_obj((summary["parameters_digest"], summary["test_loss"], summary["train_loss"]))
    assert len(set(digests)) == 1
    assert summary["world_size"] == summary["dp"] == world.size


def test_every_rank_tracks_the_same_statistics(world, shared_folder):
    layers = nn.Conv2d(8, 3, padding=1), nn.BatchNorm2d(relu=True), nn.GlobalAvgPool2d(), nn.Linear(CLASSES)
    trainer = make_trainer(world, model=nn.Sequential(*layers))
    fit_images(trainer, shared_folder / "images.h5", epochs=1)
    everyone = world.allgather_obj(trainer.replica.statistics)
    assert everyone[0].any()
    for theirs in everyone:
        np.testing.assert_array_equal(theirs, everyone[0])
