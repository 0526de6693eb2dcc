"""`hpdl train` under srun, sbatch and mpirun on both nodes of a Slurm cluster."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.slurm import SlurmCluster

pytestmark = pytest.mark.slurm

JOB = "jobs/mlp_mnist.toml"
SHORT = ("--set", "training.epochs=1", "--set", "model.hidden=[32]")
# Long enough to be stopped in the middle: hundreds of steps follow the first line of metrics.jsonl.
LONG = ("--set", "training.epochs=3", "--set", "model.hidden=[32]", "--set", "training.global_batch_size=32")
# One core for each rank: both nodes are the same machine.
BOTH_NODES = ("-N2", "-n2", "-c1")


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def parameters(run: Path) -> str:
    """Return the digest of a finished run's parameters."""
    return summary(run)["parameters_digest"]


def wait_for_first_step(slurm: SlurmCluster, job: str, run: Path) -> None:
    """Return when a run has begun to train; fail if its job ends before that."""
    metrics = run / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while not (metrics.exists() and metrics.stat().st_size):
        assert slurm.state(job) in ("PENDING", "RUNNING")
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="session")
def uninterrupted(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of LONG that nothing has disturbed."""
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    result = slurm.run("srun", "--mpi=pmi2", *BOTH_NODES, "hpdl", "train", JOB, *LONG, "--run-dir", run)
    assert result.returncode == 0, result.stderr
    return run


def test_srun_trains_across_both_nodes(slurm: SlurmCluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    launch = ("srun", "--mpi=pmi2", "-N2", "-n4", "--overcommit")
    result = slurm.run(*launch, "hpdl", "train", JOB, *SHORT, "--run-dir", run)
    assert result.returncode == 0, result.stderr
    assert "4 ranks on 2 nodes" in result.stdout
    assert summary(run)["world_size"] == 4


def test_pipelines_train_across_both_nodes(slurm: SlurmCluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    launch = ("srun", "--mpi=pmi2", "-N2", "-n4", "--overcommit")
    # With one pipeline of four ranks, messages go from rank to rank within a node and across.
    settings = ("--set", "training.epochs=1", "--trace", tmp_path / "trace.json")
    result = slurm.run(*launch, "hpdl", "train", "jobs/mlp_pipeline.toml", *settings, "--run-dir", run)
    assert result.returncode == 0, result.stderr
    assert "4 ranks on 2 nodes" in result.stdout
    assert "pp 4 x dp 1" in result.stdout
    assert summary(run)["test_accuracy"] > 0.85
    assert (tmp_path / "trace.json").exists()


def test_mpirun_in_a_batch_job_trains_across_both_nodes(slurm: SlurmCluster, tmp_path: Path) -> None:
    run, output = tmp_path / "run", tmp_path / "output"
    script = tmp_path / "script"
    script.write_text(f"#!/bin/bash\nmpirun -n 2 hpdl train {JOB} {' '.join(SHORT)} --run-dir {run}\n")
    job = slurm.submit(*BOTH_NODES, f"--output={output}", script)
    assert slurm.wait(job) == "COMPLETED", output.read_text()
    assert "2 ranks on 2 nodes" in output.read_text()
    assert summary(run)["world_size"] == 2


def test_a_launcher_that_mpi_does_not_know_is_refused_once_with_the_remedy(slurm: SlurmCluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = slurm.run("srun", "--mpi=none", *BOTH_NODES, "hpdl", "train", JOB, *SHORT, "--run-dir", run)
    assert result.returncode == 2, result.stderr
    printed = result.stdout + result.stderr
    assert printed.count("do not belong together") == 1
    assert "srun --mpi=pmi2" in printed
    assert not run.exists()


def test_the_batch_script_trains_across_both_nodes(slurm: SlurmCluster, tmp_path: Path) -> None:
    run, output = tmp_path / "run", tmp_path / "output"
    job = slurm.submit(*BOTH_NODES, f"--output={output}", "jobs/train.sbatch", JOB, *SHORT, "--run-dir", run)
    assert slurm.wait(job) == "COMPLETED", output.read_text()
    assert "2 ranks on 2 nodes" in output.read_text()
    assert summary(run)["world_size"] == 2


@pytest.mark.parametrize("signal", ["TERM", "USR1"])
def test_a_signalled_run_saves_and_resumes_to_the_same_parameters(
    slurm: SlurmCluster, tmp_path: Path, uninterrupted: Path, signal: str
) -> None:
    run, output = tmp_path / "run", tmp_path / "output"
    command = ("jobs/train.sbatch", JOB, *LONG, "--run-dir", run)
    job = slurm.submit(*BOTH_NODES, f"--output={output}", *command)
    wait_for_first_step(slurm, job, run)
    slurm.run("scancel", f"--signal={signal}", job)
    assert slurm.wait(job) == "FAILED", output.read_text()
    assert not (run / "summary.json").exists()

    job = slurm.submit(*BOTH_NODES, f"--output={output}", *command, "--resume")
    assert slurm.wait(job) == "COMPLETED", output.read_text()
    assert parameters(run) == parameters(uninterrupted)


def test_a_batch_job_near_its_time_limit_saves_requeues_and_ends_with_the_same_parameters(
    slurm: SlurmCluster, tmp_path: Path, uninterrupted: Path
) -> None:
    run, output = tmp_path / "run", tmp_path / "output"
    job = slurm.submit(*BOTH_NODES, f"--output={output}", "jobs/train.sbatch", JOB, *LONG, "--run-dir", run)
    wait_for_first_step(slurm, job, run)
    # What Slurm sends by itself before the time limit, for `--signal=B:USR1@120`.
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    assert slurm.wait(job) == "COMPLETED", output.read_text()
    assert "Restarts=1" in slurm.run("scontrol", "show", "job", job).stdout
    assert parameters(run) == parameters(uninterrupted)
