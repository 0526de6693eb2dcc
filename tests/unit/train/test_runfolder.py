"""The run folder: whose it is, who may write, and what it says when it is damaged."""

from __future__ import annotations

import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.train.runfolder import RunFolder


def test_two_runs_cannot_have_a_folder_at_once(tmp_path):
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    first.claim(resume=False)
    with pytest.raises(InputError, match="another run writes to this folder at present"):
        second.claim(resume=True)
    first.release()
    second.claim(resume=True)
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
