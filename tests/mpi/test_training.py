"""Training on the ranks of an MPI job: as on one, exactly resumed, and stopped together."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from hpdl_mpi import nn, optim
from hpdl_mpi.comm import SingleCommunicator
from hpdl_mpi.data import Augment, Jitter
from hpdl_mpi.train import Checkpoint, EarlyStopping, Parallel
from hpdl_mpi.train.evaluation import Evaluator
from hpdl_mpi.train.metrics import Metrics
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


@pytest.mark.parametrize("algorithm", ["library", "tree"])
@pytest.mark.parametrize("sharding", ["none", "optimizer", "gradients"])
def test_ranks_that_sum_as_they_are_told_take_the_steps_of_one(world, shared_folder, algorithm, sharding):
    images, parallel = shared_folder / "images.h5", Parallel(threads=1, algorithm=algorithm, sharding=sharding)
    found = fit_images(make_trainer(world, parallel=parallel), images, shared_folder / "together")
    assert {*found["allreduce"]} == ({algorithm} if world.size > 1 else set())
    assert len({*world.allgather_obj(found["parameters_digest"])}) == 1
    if world.rank == 0:
        expected = fit_images(make_trainer(SingleCommunicator()), images, shared_folder / "alone")
        losses = [step_losses(shared_folder / name) for name in ("together", "alone")]
        np.testing.assert_allclose(*losses, rtol=1e-9)
        np.testing.assert_allclose(found["test_loss"], expected["test_loss"], rtol=1e-9)


@pytest.mark.parametrize("shared_memory", ["auto", "gradients", "parameters"])
@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_ranks_that_share_memory_take_the_steps_of_those_that_do_not(world, shared_folder, shared_memory, clip_norm):
    images, parallel = shared_folder / "images.h5", Parallel(threads=1, shared_memory=shared_memory)
    trainer = make_trainer(world, parallel=parallel, clip_norm=clip_norm)
    found = fit_images(trainer, images, shared_folder / "shared")
    apart = make_trainer(world, parallel=Parallel(threads=1, shared_memory="none"), clip_norm=clip_norm)
    expected = fit_images(apart, images, shared_folder / "apart")
    assert len({*world.allgather_obj(found["parameters_digest"])}) == 1
    assert {*found["allreduce"]} == {"one_copy" if shared_memory == "parameters" else "window"}
    assert {*expected["allreduce"]} == {"one_shot"}
    if world.rank == 0:
        losses = [step_losses(shared_folder / name) for name in ("shared", "apart")]
        np.testing.assert_allclose(*losses, rtol=1e-9)
    # The run is over, and the arrays are the rank's own again.
    np.testing.assert_allclose(found["test_loss"], expected["test_loss"], rtol=1e-9)
    trainer.replica.params[:] = world.rank
    world.barrier()
    assert np.all(trainer.replica.params == world.rank)


def test_all_ranks_together_augment_as_one_does(world, shared_folder):
    images = shared_folder / "images.h5"
    augment = Augment(flip=True, crop=5, jitter=Jitter(brightness=0.3), cutout=2, mixup=0.3)
    fit_images(make_trainer(world), images, shared_folder / "together", augment=augment)
    if world.rank == 0:
        fit_images(make_trainer(SingleCommunicator()), images, shared_folder / "alone", augment=augment)
        found, expected = step_losses(shared_folder / "together"), step_losses(shared_folder / "alone")
        np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("shared_memory", ["none", "parameters"])
def test_a_signal_to_one_rank_stops_all_and_the_run_resumes_exactly(world, shared_folder, shared_memory):
    images, parallel = shared_folder / "images.h5", Parallel(threads=1, shared_memory=shared_memory)
    expected = fit_images(make_trainer(world, parallel=parallel), images)
    trainer = make_trainer(world, parallel=parallel)
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
    resumed = fit_images(make_trainer(world, parallel=parallel), images, shared_folder / "run", resume=True)
    assert resumed["parameters_digest"] == expected["parameters_digest"]


def test_every_rank_has_the_same_parameters_and_summary(world, shared_folder):
    summary = fit_images(make_trainer(world), shared_folder / "images.h5")
    digests = world.allgather_obj((summary["parameters_digest"], summary["test_loss"], summary["train_loss"]))
    assert len(set(digests)) == 1
    assert summary["world_size"] == summary["dp"] == world.size


def test_a_pipeline_exports_what_another_begins_with(world, shared_folder):
    images, weights = shared_folder / "images.h5", shared_folder / "weights.safetensors"
    pipeline = Parallel(threads=1, pp=world.size, num_microbatches=2)
    first, second = (make_trainer(world, parallel=pipeline) for _ in range(2))
    fit_images(first, images, epochs=1)
    first.export(weights)
    # A rate of zero: what a run begins with is what it ends with.
    second._assembly.optimizer.lr = 0.0
    fit_images(second, images, epochs=1, init=weights)
    second.export(shared_folder / "again.safetensors")
    world.barrier()
    found, again = load_file(weights), load_file(shared_folder / "again.safetensors")
    assert sorted(found) == sorted(again) == ["0.bias", "0.weight", "5.bias", "5.weight"]
    assert (found["0.weight"].shape, found["5.weight"].shape) == ((4, 1, 3, 3), (CLASSES, 36))
    for name, values in found.items():
        np.testing.assert_array_equal(again[name], values)


def test_every_rank_tracks_the_same_statistics(world, shared_folder):
    layers = nn.Conv2d(8, 3, padding=1), nn.BatchNorm2d(activation="relu"), nn.GlobalAvgPool2d(), nn.Linear(CLASSES)
    trainer = make_trainer(world, model=nn.Sequential(*layers))
    fit_images(trainer, shared_folder / "images.h5", epochs=1)
    everyone = world.allgather_obj(trainer.replica.statistics)
    assert everyone[0].any()
    for theirs in everyone:
        np.testing.assert_array_equal(theirs, everyone[0])


def test_ranks_together_normalise_as_one_does(world, shared_folder):
    images = shared_folder / "images.h5"

    def make(comm, **settings):
        layers = nn.Conv2d(8, 3, padding=1), nn.BatchNorm2d(activation="relu"), nn.GlobalAvgPool2d(), nn.Linear(CLASSES)
        return make_trainer(comm, model=nn.Sequential(*layers), parallel=Parallel(threads=1, **settings))

    fit_images(make(world, sync_batch_norm=True, check_calls=True), images, shared_folder / "together")
    if world.rank == 0:
        fit_images(make(SingleCommunicator()), images, shared_folder / "alone")
        found, expected = step_losses(shared_folder / "together"), step_losses(shared_folder / "alone")
        np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1"])
def test_pipelines_compare_calls_beside_all_that_shares(world, shared_folder, schedule):
    """Two pipelines where there are four ranks, and one of all ranks else."""
    dp = 2 if world.size == 4 else 1
    layers = [nn.Conv2d(8, 3, padding=1), nn.BatchNorm2d(activation="relu")]
    model = nn.Sequential(*layers, *(nn.Conv2d(8, 3, padding=1) for _ in range(3)), nn.Flatten(), nn.Linear(CLASSES))
    settings = {"pp": world.size // dp, "schedule": schedule, "num_microbatches": 4, "check_calls": True}
    parallel = Parallel(threads=1, shared_memory="parameters", sync_batch_norm=True, timeout_seconds=20, **settings)
    summary = fit_images(make_trainer(world, model=model, parallel=parallel), shared_folder / "images.h5", epochs=1)
    assert np.isfinite(summary["train_loss"])
    assert {*summary["allreduce"]} == ({"one_copy"} if dp > 1 else set())


def test_evaluations_end_a_run_on_all_ranks_at_the_same_step(world, shared_folder, monkeypatch):
    losses = [5.0, 4.0, 4.5, 4.2, 4.1, 3.0]
    monkeypatch.setattr(
        Evaluator, "__call__", lambda self: Metrics(losses[self._replica.step // 4 - 1], accuracy=world.rank / 8)
    )
    settings = {"epochs": 6, "early_stopping": EarlyStopping(patience=2), "checkpoint": Checkpoint(keep=1)}
    folder, images = shared_folder / "run", shared_folder / "images.h5"
    for resume in (False, True):  # one that has ended ends again
        summary = fit_images(make_trainer(world, ema=0.9), images, folder, resume=resume, **settings)
        found = world.allgather_obj((summary["steps"], summary["early_stopping"], summary["parameters_digest"]))
        assert found == [found[0]] * world.size
        assert found[0][0] == 16
        assert (summary["early_stopping"]["stopped"], summary["early_stopping"]["best_step"]) == (True, 8)
    world.barrier()
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == ["best", "step-0000000008", "step-0000000016"]


def test_every_rank_has_the_same_moving_average_and_resumes_it_exactly(world, shared_folder):
    folder, images = shared_folder / "run", shared_folder / "images.h5"
    whole, parts = (make_trainer(world, ema=0.9, lr_schedule=optim.Constant()) for _ in range(2))
    fit_images(whole, images, epochs=2)
    fit_images(make_trainer(world, ema=0.9, lr_schedule=optim.Constant()), images, folder, epochs=1)
    fit_images(parts, images, folder, epochs=2, resume=True)
    np.testing.assert_array_equal(parts.replica.average.params, whole.replica.average.params)
    for theirs in world.allgather_obj(whole.replica.average.params):
        np.testing.assert_array_equal(theirs, whole.replica.average.params)
    assert not np.array_equal(whole.replica.average.params, whole.replica.params)
