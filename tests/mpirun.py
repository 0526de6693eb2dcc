"""Programs on several ranks, each test with an ``mpirun`` of its own."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MPIRUN = os.environ.get("MPIRUN") or shutil.which("mpirun", path=Path(sys.executable).parent)

needs_mpirun = pytest.mark.skipif(MPIRUN is None, reason="no mpirun beside Python, and MPIRUN names none")


def run(command: Sequence[str], environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program that must end by itself; none here takes long."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PMI_", "SLURM_", "OMPI_"))}
    environment = inherited | {"PYTHONPATH": str(ROOT)} | dict(environ or {})
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150, cwd=ROOT)


def run_python(
    num_ranks: int, *arguments: str, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run this Python with these arguments on each rank."""
    return run([*shlex.split(str(MPIRUN)), "-n", str(num_ranks), sys.executable, *arguments], environ)
