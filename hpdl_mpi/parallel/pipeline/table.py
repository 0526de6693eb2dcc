"""Schedules as CSV: a row for each rank, a cell for each action, such as 0F3: stage 0, forward of micro-batch 3.

The same form as PyTorch's: computations only, and empty cells mean nothing.
"""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm.check import ScheduleError
from hpdl_mpi.parallel.pipeline.action import COMPUTE, Action, Op, Schedule
from hpdl_mpi.parallel.pipeline.check import check

_CELL = re.compile(r"(\d{1,6})([FIWB])(\d{1,6})", re.ASCII)
_MAX_BYTES = 64 * 2**20


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
    programs = [[_action(path, r, c, cell) for c, cell in row if cell] for r, row in enumerate(_rows(path))]
    computed = [(rank, action) for rank, program in enumerate(programs) for action in program]
    if not programs:
        raise InputError("the schedule is empty", where=path)
    if not all(programs):
        empty = [rank for rank, program in enumerate(programs) if not program]
        raise InputError(
            "a rank has nothing to do", where=path, found=f"rows {empty}, from 0", expected="actions in each row"
        )
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


def _rows(path: Path) -> list[list[tuple[int, str]]]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError("too large for a schedule", where=path, expected=f"at most {_MAX_BYTES} bytes")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        rows = list(csv.reader(line for line in lines if line.strip()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError("the schedule cannot be read", where=path, found=reason) from error
    return [[(column, cell.strip()) for column, cell in enumerate(row)] for row in rows]


def _action(path: Path, row: int, column: int, cell: str) -> Action:
    match = _CELL.fullmatch(cell)
    if not match:
        raise InputError(
            "a cell is no action",
            where=f"{path}, row {row + 1}, column {column + 1}",
            found=repr(cell[:40]),
            expected="stage, F, I, W or B, and micro-batch, such as 0F3",
        )
    return Action(Op(match[2]), int(match[1]), int(match[3]))
