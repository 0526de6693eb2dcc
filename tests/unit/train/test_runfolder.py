"""The run folder: whose it is, who may write, and what it says when it is damaged."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile

import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.train import load_job
from hpdl_mpi.train.runfolder import RunFolder, resumed_job

LENET = "jobs/lenet_mnist.toml"


def test_two_runs_cannot_have_a_folder_at_once(tmp_path):
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    first.claim(resume=False)
    with pytest.raises(InputError, match="another run writes to this folder at present"):
        second.claim(resume=True)
    first.release()
    second.claim(resume=True)
    second.release()


def test_a_folder_in_which_no_run_began_is_left_as_it_was_found(tmp_path):
    made, found = RunFolder(tmp_path / "runs" / "made"), RunFolder(tmp_path / "found")
    found.path.mkdir()
    for folder in (made, found):
        folder.claim(resume=False)
        folder.release()
    assert list(tmp_path.rglob("*")) == [found.path]
    made.claim(resume=False)
    (made.path / "notes.txt").touch()
    made.release()
    assert list(made.path.iterdir()) == [made.path / "notes.txt"]


def test_a_claim_that_fails_leaves_nothing(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "runs" / "full")

    def fail(**where):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    with pytest.raises(InputError, match=r"the run folder cannot be written\. Found No space left on device"):
        folder.claim(resume=False)
    folder.release()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_another_run_removes_meanwhile_gives_no_right(tmp_path, monkeypatch):
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    first.claim(resume=False)

    def lock_what_is_removed(file, operation):
        first.release()
        return flock(file, operation)

    flock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", lock_what_is_removed)
    with pytest.raises(InputError, match="another run writes to this folder at present"):
        second.claim(resume=False)
    second.release()


def test_a_folder_that_holds_a_run_is_claimed_to_resume_only(tmp_path):
    folder = RunFolder(tmp_path)
    folder.job.write_text("{}")
    with pytest.raises(InputError, match=r"holds a run already.*--resume"):
        folder.claim(resume=False)
    folder.claim(resume=True)
    folder.release()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": ', "not a valid job file. Found Expecting value"),
        ("[]", "not a valid job file. Found list in place of sections and keys"),
        ("{}", "name: missing; model: missing; data: missing; training: missing; optimizer: missing"),
    ],
    ids=["cut off", "list", "empty"],
)
def test_a_damaged_job_is_named_with_what_to_do(tmp_path, text, message):
    folder = RunFolder(tmp_path)
    folder.job.write_text(text)
    with pytest.raises(InputError) as caught:
        folder.read_job()
    assert str(caught.value).startswith(f"{folder.job}: {message}")
    assert str(caught.value).endswith(". Remove it and continue the run from its own job file, with --resume.")


def test_a_run_folder_has_a_name():
    with pytest.raises(InputError, match=r"--run-dir: the run folder has no name"):
        RunFolder("")


def resume(num_ranks, *overrides):
    saved = ["parallel.dp=2", "parallel.threads=8", "data.transform={mean=[0.25], std=[2.0], scale=3.0}"]
    job = load_job(LENET, ["data.transform={standardize=true, scale=3.0}", *overrides])
    return resumed_job(job, load_job(LENET, saved), num_ranks)


@pytest.mark.parametrize(("num_ranks", "threads"), [(2, 8), (4, None)])
def test_a_run_keeps_its_threads_on_as_many_ranks(num_ranks, threads):
    assert resume(num_ranks).parallel.threads == threads


def test_a_run_remembers_the_weights_that_it_began_with():
    saved, other = (load_job(LENET, [f"init.file={name}", "parallel.dp=1"]) for name in ("a", "b"))
    assert resumed_job(load_job(LENET), saved, 1).init == saved.init
    assert resumed_job(saved, saved, 1).init == saved.init
    with pytest.raises(InputError, match="init: a run cannot change this when it goes on"):
        resumed_job(other, saved, 1)


def test_a_run_does_not_change_how_its_convolutions_sum():
    with pytest.raises(InputError, match=r"training\.exact: a run cannot change this when it goes on"):
        resume(2, "training.exact=true")


def test_a_run_keeps_what_was_measured_but_not_what_the_new_job_says_otherwise():
    assert resume(2).data.transform.mean == [0.25]
    changed = resume(2, "data.transform.scale=1.0").data.transform
    assert (changed.mean, changed.scale, changed.standardize) == ([0.25], 1.0, False)
