"""Schedules to look at: ranks downwards, time to the right."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.text import Text

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.base.files import write_file
from hpdl_mpi.parallel.pipeline.action import COMPUTE, Action, Op, Schedule
from hpdl_mpi.parallel.pipeline.simulate import Simulation, Timing, simulate

_STYLES = {Op.F: "on dark_blue", Op.I: "on dark_cyan", Op.W: "on dark_green", Op.B: "on deep_sky_blue4"}
_COLORS = {Op.F: "#4c72b0", Op.I: "#55a868", Op.W: "#dd8452", Op.B: "#64b5cd"}
_NAMES = {Op.F: "forward", Op.I: "dgrad", Op.W: "wgrad", Op.B: "backward"}
_MAX_CELLS = 20_000
_PLACE_WIDTH = 100
_PLACE_RANKS = 8


def chunk_of(schedule: Schedule, action: Action) -> int:
    """Return which of its rank's stages an action belongs to, from 0."""
    rank = schedule.stage_ranks[action.stage]
    return schedule.stage_ranks[: action.stage].count(rank)


def draw_text(schedule: Schedule, simulation: Simulation, width: int) -> list[Text]:
    """Return lines for a terminal: a row of cells for each rank, folded into blocks where it is wider than `width`.

    A cell is as long as the shortest action. An action shows its kind and micro-batch, in small letters on each rank's
    second stage, fourth stage, and so on. What would take very many cells is not drawn, and a line says so.
    """
    unit = min(timing.stop - timing.start for timings in simulation.timings for timing in timings)
    num_cells = round(simulation.makespan / unit) if unit > 0 else _MAX_CELLS + 1
    if num_cells > _MAX_CELLS:
        return [Text("too long, or with actions too short, to be drawn here; a picture can show it", "dim")]
    cell = len(str(schedule.num_microbatches - 1)) + 1
    head = len(str(schedule.num_ranks - 1)) + 1
    rows = [
        _row(schedule, timings, lambda time: cell * int(time / unit + 0.5), num_cells * cell)
        for timings in simulation.timings
    ]
    fold = max(1, (width - head) // cell) * cell
    lines = []
    for start in range(0, num_cells * cell, fold):
        lines += [Text()] if start else []
        lines += [Text(f"{rank:>{head - 1}} ", "bold") + row[start : start + fold] for rank, row in enumerate(rows)]
    return lines


def _row(schedule: Schedule, timings: list[Timing], column: Callable[[float], int], length: int) -> Text:
    row = Text()
    for timing in timings:
        row.append("." * (column(timing.start) - len(row)), "dim")
        label = f"{timing.action.op}{timing.action.microbatch}"
        if chunk_of(schedule, timing.action) % 2:
            label = label.lower()
        width = column(timing.stop) - len(row)
        row.append(label.ljust(width)[:width], _STYLES[timing.action.op])
    row.append("." * (length - len(row)), "dim")
    return row


def draw_place(schedule: Schedule, rank: int, index: int) -> str:
    """Return plain lines that show what all ranks do about when `rank` is at action `index` of its program.

    Each rank's computations stand at their simulated time; carets mark the place. Of very many ranks, those near the
    rank are shown.
    """
    action = schedule.programs[rank][index]
    done = sum(before.op in COMPUTE for before in schedule.programs[rank][:index])
    simulation = simulate(schedule)
    timings = simulation.timings[rank]
    cell = len(str(schedule.num_microbatches - 1)) + 1
    marked = timings[min(done, len(timings) - 1)].start
    middle = int(marked) * cell
    start = max(0, middle - _PLACE_WIDTH // 2) // cell * cell
    ranks = range(max(0, rank - _PLACE_RANKS), min(schedule.num_ranks, rank + _PLACE_RANKS + 1))
    lines = [f"rank {rank} of the pipeline was at {action}, action {index + 1} of {len(schedule.programs[rank])}:"]
    for other in ranks:
        length = int(simulation.makespan) * cell
        row = _row(schedule, simulation.timings[other], lambda time: cell * round(time), length).plain
        lines.append(f"{other:>4} {row[start : start + _PLACE_WIDTH]}")
        if other == rank:
            lines.append(" " * (5 + middle - start) + "^" * cell)
    return "\n".join(lines)


def draw_png(schedule: Schedule, panels: Mapping[str, Simulation], path: Path) -> None:
    """Write a picture: a row for each rank, a box for each action with its micro-batch, paler on later stages.

    Parameters
    ----------
    schedule : Schedule
    panels : mapping of str to Simulation
        What is drawn one below the other on one scale of time, each with its title.
    path : Path

    Raises
    ------
    InputError
        matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError as error:
        remedy = "install it: pip install 'hpdl_mpi[plot]'"
        raise InputError("a picture needs matplotlib, which is not installed", remedy=remedy) from error
    figure = Figure(figsize=(16, len(panels) * (1.5 + 0.5 * schedule.num_ranks)), layout="constrained")
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    longest = max(simulation.makespan for simulation in panels.values())
    for axes, (title, simulation) in zip(rows, panels.items(), strict=True):
        _draw_panel(axes, schedule, simulation, longest)
        axes.set(title=title, ylabel="rank", yticks=range(schedule.num_ranks), xlim=(0, longest))
        axes.invert_yaxis()
    rows[-1].set_xlabel("time")
    handles = [Patch(color=_COLORS[op], label=name) for op, name in _NAMES.items()]
    rows[0].legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    write_file(path, image.getvalue())


def _draw_panel(axes: Any, schedule: Schedule, simulation: Simulation, longest: float) -> None:
    num_chunks = max(1, schedule.num_stages // schedule.num_ranks)
    chunks = {stage: chunk_of(schedule, Action(Op.F, stage)) for stage in range(schedule.num_stages)}
    for rank, timings in enumerate(simulation.timings):
        bars = [(timing.start, timing.stop - timing.start) for timing in timings]
        colors = [(_COLORS[timing.action.op], 1 - 0.5 * chunks[timing.action.stage] / num_chunks) for timing in timings]
        axes.broken_barh(bars, (rank - 0.4, 0.8), facecolors=colors, edgecolor="white", linewidth=0.5)
        for timing, (start, length) in zip(timings, bars, strict=True):
            if length > longest / 150:
                label = str(timing.action.microbatch)
                axes.text(start + length / 2, rank, label, ha="center", va="center", fontsize=7)
