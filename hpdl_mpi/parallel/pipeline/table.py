"""Schedules as CSV: a row for each rank, a cell for each action, such as 0F3: stage 0, forward of micro-batch 3.

The same form as PyTorch's: computations only, and empty cells mean nothing.
"""

from __future__ import annotations

import csv
import io
import re
import stat
from pathlib import Path

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm.check import ScheduleError
from hpdl_mpi.parallel.pipeline.action import COMPUTE, Action, Op, Schedule
from hpdl_mpi.parallel.pipeline.check import check

_CELL = re.compile(r"(\d{1,6})([FIWB])(\d{1,6})", re.ASCII)
_MAX_CHARACTERS = 4 * 2**20


def format_schedule(schedule: Schedule) -> str:
    """Return the CSV of a schedule's computations."""
    text = io.StringIO()
    rows = ([str(action) for action in program if action.op in COMPUTE] for program in schedule.programs)
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def read_schedule(path: Path) -> Schedule:
    """Read a schedule, and prove it.

    Raises
    ------
    InputError
        The file cannot be read, a cell is no action, or the schedule does not do what it should; it names the cell.
    """
    programs = _programs(path)
    computed = [(rank, action) for rank, program in enumerate(programs) for action in program]
    if not programs:
        raise InputError("the schedule is empty", where=path)
    owners: dict[int, int] = {}
    for rank, action in computed:
        if owners.setdefault(action.stage, rank) != rank:
            found = f"ranks {owners[action.stage]} and {rank}"
            raise InputError(f"stage {action.stage} is on two ranks", where=path, found=found)
    if sorted(owners) != list(range(len(owners))):
        raise InputError("a stage is missing", where=path, found=f"stages {sorted(owners)}", expected="0, 1, 2, ...")
    num_microbatches = 1 + max(action.microbatch for _, action in computed)
    if num_microbatches > len(computed):
        raise InputError("micro-batches are missing", where=path, found=f"{len(computed)} cells for {num_microbatches}")
    stage_ranks = tuple(owners[stage] for stage in range(len(owners)))
    schedule = Schedule(stage_ranks, num_microbatches, tuple(map(tuple, programs)))
    try:
        check(schedule, complete=False)
    except ScheduleError as error:
        raise InputError(str(error), where=path) from error
    return schedule


def _read(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError("no regular file", where=path)
        with open(path, encoding="utf-8-sig", newline="") as file:
            text = file.read(_MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError("the schedule cannot be read", where=path, found=reason) from error
    if len(text) > _MAX_CHARACTERS:
        raise InputError("too long for a schedule", where=path, expected=f"at most {_MAX_CHARACTERS} characters")
    return text


def _programs(path: Path) -> list[list[Action]]:
    """Return the actions of each line that is not blank."""
    programs = []
    reader = csv.reader(io.StringIO(_read(path), newline=""))
    try:
        for row in reader:
            program = [
                _action(path, reader.line_num, column, cell.strip())
                for column, cell in enumerate(row, 1)
                if cell and not cell.isspace()
            ]
            if row and not program:
                raise InputError("a rank has nothing to do", where=f"{path}, line {reader.line_num}")
            if program:
                programs.append(program)
    except csv.Error as error:
        raise InputError("the schedule cannot be read", where=path, found=error) from error
    return programs


def _action(path: Path, line: int, column: int, cell: str) -> Action:
    match = _CELL.fullmatch(cell)
    if not match:
        raise InputError(
            "a cell is no action",
            where=f"{path}, line {line}, column {column}",
            found=repr(cell[:40]),
            expected="stage, F, I, W or B, and micro-batch, such as 0F3",
        )
    return Action(Op(match[2]), int(match[1]), int(match[3]))
