"""The script that trains a job with PyTorch does what the job does with ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from hpdl_mpi.comm import SingleCommunicator
from hpdl_mpi.train.run import run_job

pytestmark = pytest.mark.parity

JOB = "jobs/resnet20_cifar10.toml"
SHORT = ("training.epochs=none", "training.steps=4", "training.global_batch_size=32", "lr_schedule.warmup_steps=4000")


def train_torch(*overrides: str) -> subprocess.CompletedProcess[str]:
    options = [word for override in overrides for word in ("--set", override)]
    command = [sys.executable, "benchmarks/train_torch.py", JOB, *options]
    return subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=300)


def test_a_few_steps_lead_to_the_same_evaluation(tmp_path):
    summary = run_job(JOB, SingleCommunicator(), overrides=(*SHORT, "parallel.threads=1"), run_dir=tmp_path / "run")
    done = train_torch(*SHORT)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    # Statistics and weights differ by float32's rounding, which a few steps at a small rate hardly let grow.
    assert line["loss"] == pytest.approx(summary["test_loss"], rel=1e-4)
    assert line["step"] == 4


def test_what_it_does_not_translate_is_refused():
    done = train_torch("training.ema=0.9")
    assert done.returncode != 0
    assert "training.ema" in done.stderr
