"""What a result says of where it was taken."""

from __future__ import annotations

import sys

import pytest

from hpdl_mpi.bench.machine import describe_command


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("/opt/venv/bin/python", "python"),
        ("-m", "-m"),
        ("../elsewhere/job.toml", "job.toml"),
        ("jobs/lenet.toml", "jobs/lenet.toml"),
        ("--out=/home/somebody/result.json", "--out=result.json"),
        ("data.train=/scratch/set/train", "data.train=train"),
        ("optimizer.lr=1/2", "optimizer.lr=1/2"),
        ("--vs=", "--vs="),
        ("/", "/"),
        ("two words", "'two words'"),
    ],
)
def test_a_command_names_no_folder_of_its_own(monkeypatch, argument, shown):
    monkeypatch.setattr(sys, "orig_argv", ["hpdl", argument])
    assert describe_command() == f"hpdl {shown}"


def test_a_path_in_the_current_folder_keeps_what_lies_below(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "orig_argv", ["hpdl", f"{tmp_path}/jobs/lenet.toml", f"--set=x={tmp_path}/a/b"])
    assert describe_command() == "hpdl jobs/lenet.toml --set=x=a/b"
