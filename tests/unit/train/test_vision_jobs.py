"""The jobs of vision run as they stand, on the small data that are here or on synthetic ones of the same shapes."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from hpdl_mpi.comm import SingleCommunicator
from hpdl_mpi.train.choices import read_job
from hpdl_mpi.train.run import open_run, run_job
from tests.training_cases import step_losses

FEW_STEPS = ("training.global_batch_size=16", "training.epochs=none", "training.steps=3", "parallel.threads=1")


@pytest.mark.parametrize(("name", "num_parameters"), [("resnet20_cifar10", 272_474), ("resnet18_cifar10", 11_173_962)])
def test_small_photographs_are_trained_on_and_a_resumed_run_has_the_same_bits(
    name: str, num_parameters: int, tmp_path: Path
) -> None:
    comm, job = SingleCommunicator(), f"jobs/{name}.toml"
    whole = run_job(job, comm, overrides=FEW_STEPS, run_dir=tmp_path / "whole")
    assert (whole["steps"], whole["model"]) == (3, read_job(job).model.name)
    assert whole["num_parameters"] == num_parameters
    assert np.isfinite([*step_losses(tmp_path / "whole"), whole["test_loss"]]).all()
    assert whole["test_accuracy"] <= whole["test_top5"] <= 1
    # In the warm-up the learning rate does not depend on the length of the run.
    settings = (*FEW_STEPS, "data.test=none")
    run_job(job, comm, overrides=(*settings, "training.steps=2"), run_dir=tmp_path / "parts")
    resumed = run_job(job, comm, overrides=settings, run_dir=tmp_path / "parts", resume=True)
    assert resumed["parameters_digest"] == whole["parameters_digest"]
    assert step_losses(tmp_path / "parts") == step_losses(tmp_path / "whole")


def write_photographs(folder: Path, num_samples: int) -> None:
    """Write what ``hpdl data convert --size 256`` makes of ImageNet, of noise."""
    rng = np.random.default_rng(num_samples)
    folder.mkdir(parents=True)
    with h5py.File(folder / "part-00000-of-00001.h5", "w") as file:
        shape = (num_samples, 256, 256, 3)
        file.create_dataset("x", data=rng.integers(0, 256, shape, np.uint8), chunks=(4, *shape[1:]))
        file["y"] = rng.integers(0, 1000, num_samples).astype(np.uint16)


def test_alexnet_trains_on_shards_of_the_shape_of_imagenet(tmp_path: Path) -> None:
    write_photographs(tmp_path / "train", 20)
    write_photographs(tmp_path / "val", 9)
    data = (f"data.train={tmp_path / 'train'}", f"data.test={tmp_path / 'val'}")
    job = "jobs/alexnet_imagenet.toml"
    summary = run_job(job, SingleCommunicator(), overrides=(*FEW_STEPS, *data), run_dir=tmp_path / "run")
    assert summary["num_parameters"] == 61_100_840
    assert np.isfinite(step_losses(tmp_path / "run")).all()
    assert summary["test_accuracy"] <= summary["test_top5"] <= 1
    trainer, _ = open_run(tmp_path / "run", SingleCommunicator())
    assert trainer.replica.input_shape == (224, 224, 3)
    # The same sums in float32, but for the batches of the evaluation: a mean of nine losses of about log(1000).
    assert trainer.evaluate(tmp_path / "val").loss == pytest.approx(summary["test_loss"], rel=1e-5)
