"""Gradients that travel in less teach handwritten digits as whole ones do."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from hpdl_mpi.comm import SingleCommunicator, run_threads
from hpdl_mpi.train.job import Parallel
from hpdl_mpi.train.run import run_job
from hpdl_mpi.train.runfolder import RunFolder

SETTINGS = ("parallel.algorithm=ring", "parallel.threads=1")


def accuracy(*overrides: str) -> float:
    """Return the test accuracy of a perceptron on two ranks after the ten epochs of its job."""
    settings = SETTINGS + overrides
    with TemporaryDirectory() as folder:
        run = Path(folder, "run")
        job = "jobs/mlp_mnist.toml"
        return run_threads(2, lambda comm: run_job(job, comm, overrides=settings, run_dir=run))[0]["test_accuracy"]


@pytest.fixture(scope="module")
def whole() -> float:
    return accuracy()


@pytest.mark.parametrize(
    "overrides",
    [
        ("compression=bf16",),
        ("compression=fp16",),
        ("compression=powersgd", "compression_rank=4"),
        ("compression=top-k", "compression_density=0.01", "algorithm=auto"),
    ],
    ids=lambda overrides: overrides[0],
)
def test_compressed_sums_reach_the_accuracy_of_whole_ones(overrides: tuple[str, ...], whole: float) -> None:
    """Of 2,000 test images near 96 % are right, so the standard error of a difference is at most 0.6 points.

    Two of them are allowed.
    """
    assert whole > 0.95
    assert accuracy(*(f"parallel.{setting}" for setting in overrides)) > whole - 0.012


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"compression": "bf16"},
        {"compression": "powersgd"},
        {"compression": "powersgd", "compression_rank": 2},
        {"compression": "top-k", "compression_density": 0.1},
    ],
)
def test_a_run_goes_on_with_the_compression_that_its_folder_tells(settings: dict[str, Any], tmp_path: Path) -> None:
    overrides = [f"parallel.{key}={value}" for key, value in settings.items()] + ["training.epochs=none"]
    for steps in (1, 2):
        job, folder = "jobs/mlp_mnist.toml", tmp_path / "run"
        length = [*overrides, f"training.steps={steps}"]
        run_job(job, SingleCommunicator(), overrides=length, run_dir=folder, resume=steps > 1)
    saved = RunFolder(folder).read_job().parallel
    assert (saved.compression, saved.feedback) == (settings.get("compression"), Parallel(**settings).feedback)
    again = run_job(folder / "job.json", SingleCommunicator(), run_dir=tmp_path / "again")
    assert again["steps"] == 2
