"""The script that starts a job on this machine finds its environment wherever it is."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def put_program(folder: Path, name: str) -> Path:
    """Write a program that says how it was called."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / name
    program.write_text('#!/bin/sh\necho "$0" "$@"\n')
    program.chmod(0o755)
    return program


@pytest.fixture
def local(tmp_path):
    """Return a function that runs the script in a repository of its own, with an active environment or without."""
    (tmp_path / "jobs").mkdir()
    shutil.copy("jobs/local.sh", tmp_path / "jobs")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        active = str(tmp_path / "active")
        environ = os.environ | {"PATH": f"{active}:/usr/bin:/bin"}
        return subprocess.run(
            [tmp_path / "jobs/local.sh", *arguments], env=environ, capture_output=True, text=True, timeout=30
        )

    return run


@pytest.mark.parametrize("place", ["active", ".venv", ".venv-system/bin"])
def test_a_job_runs_in_the_environment_that_is_there(local, tmp_path, place):
    folder = tmp_path / (place + "/bin" if place == ".venv" else place)
    hpdl = put_program(folder, "hpdl")
    # the wheel's mpirun lies beside hpdl, a system's own on the path
    mpirun = put_program(tmp_path / "active" if "system" in place else folder, "mpirun")
    done = local("3", "job.toml", "--resume")
    assert (done.returncode, done.stdout) == (0, f"{mpirun} -n 3 {hpdl} train job.toml --resume\n"), done.stderr


def test_what_is_missing_is_said(local):
    assert (local("2").returncode, local("2", "job.toml").returncode) == (2, 2)
    assert "jobs/local.sh NUM_RANKS JOB.toml" in local("2").stderr
    assert "run make install" in local("2", "job.toml").stderr
