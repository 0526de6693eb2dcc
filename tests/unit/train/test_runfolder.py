"""The run folder: whose it is, and who may write."""

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
