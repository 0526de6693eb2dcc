"""The jobs of vision run as they stand, on the small data that are here or on synthetic ones of the same shapes."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from hpdl_mpi.comm import SingleCommunicator
from hpdl_mpi.train.choices import read_job
from hpdl_mpi.train.run import run_job

FEW_STEPS = ("training.global_batch_size=16", "training.epochs=none", "training.steps=3", "parallel.threads=1")


@pytest.mark.parametrize("name", ["resnet20_cifar10", "resnet18_cifar10"])
def test_small_photographs_are_trained_on(name: str, tmp_path: Path) -> None:
    summary = run_job(f"jobs/{name}.toml", SingleCommunicator(), overrides=FEW_STEPS, run_dir=tmp_path / "run")
    assert (summary["steps"], summary["model"]) == (3, read_job(f"jobs/{name}.toml").model.name)
    assert 0 < summary["test_loss"] < 20
    assert summary["test_accuracy"] <= summary["test_top5"] <= 1


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
    assert summary["test_loss"] == pytest.approx(np.log(1000), abs=0.5)
