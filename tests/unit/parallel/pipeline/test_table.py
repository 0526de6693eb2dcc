"""Schedules go to CSV and back; files of others are proved before they are used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.parallel.pipeline import Schedule, format_schedule, make_schedule, read_schedule
from tests.pipeline_cases import schedules


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schedule=schedules())
def test_a_schedule_comes_back_as_it_was(schedule: Schedule, tmp_path: Path) -> None:
    file = tmp_path / "schedule.csv"
    file.write_text(format_schedule(schedule))
    assert read_schedule(file) == schedule


def test_empty_cells_and_lines_mean_nothing(tmp_path: Path) -> None:
    file = tmp_path / "schedule.csv"
    file.write_text("\ufeff0F0, ,,0B0\n\n,1F0,1B0,\n", encoding="utf-8")
    assert read_schedule(file) == make_schedule("1f1b", 2, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0F0,0X0\n", r"line 1, column 2: a cell is no action. Found '0X0'; expected stage, F, I, W or B"),
        ("0F0,0B0\n1F0,9999999F1\n", "line 2, column 2: a cell is no action"),
        ("", "the schedule is empty"),
        ("0F0,0B0\n\n,\n", "line 3: a rank has nothing to do"),
        ('"0F\n0",0B0\n', r"a cell is no action. Found '0F\\n0'"),
        ("," * 5 * 2**20, "too long for a schedule"),
        ("0F0,0B0\n0F1,0B1\n", "stage 0 is on two ranks. Found ranks 0 and 1"),
        ("0F0,0B0\n2F0,2B0\n", r"a stage is missing. Found stages \[0, 2\]"),
        ("0F0,0B0,0F2,0B2\n", "stage 0 computes F of micro-batch 2 where micro-batch 1 is due"),
        ("0F0,0I0\n", "stage 0 computes W of nothing where micro-batch 0 is due"),
        ("0F0,0B0,0F999999\n", "micro-batches are missing. Found 3 cells for 1000000"),
        ("0B0,0F0\n", "rank 0: 0B0 comes before the output of stage 0"),
        ("0F0,0B0,0F1,0B1\n1F0,1F1,1B0,1B1\n", "wait for one another for ever: rank 0 at 0B0"),
    ],
)
def test_a_file_that_is_wrong_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "schedule.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_schedule(file)


def test_a_file_for_other_numbers_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "schedule.csv"
    file.write_text(format_schedule(make_schedule("1f1b", 2, 3)))
    assert make_schedule(str(file), 2, 3) == make_schedule("1f1b", 2, 3)
    with pytest.raises(InputError, match=r"Found 2 ranks and 3 micro-batches; expected 4 and 3"):
        make_schedule(str(file), 4, 3)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "schedule.csv"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="no regular file"):
        read_schedule(pipe)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the schedule cannot be read. Found No such file"):
        make_schedule(str(tmp_path / "none.csv"), 2, 3)
