"""``--trace``: some steps of a run, recorded on all ranks, for trace viewers, as a picture, and in numbers."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpdl_mpi.base.files import check_destination, write_file
from hpdl_mpi.base.trace import Trace, chrome_trace
from hpdl_mpi.comm import agree, clock_offset
from hpdl_mpi.parallel import ProcessGrid, Replica, TrainingStep
from hpdl_mpi.parallel.communication import CommunicationTimes, measure_communication
from hpdl_mpi.parallel.pipeline import StepTimes, compare, complete, recorded, split_steps

TRACED_STEPS = 20
_SKIPPED = 2
"""Steps before the first one that is recorded: they are slower."""


def check_trace(path: Path) -> None:
    """Raise an `InputError` unless the files of a trace can be written."""
    for file in (path, path.with_suffix(".png")):
        check_destination(file)


class Recorder:
    """Records steps of a run and writes what it saw. All methods are collective.

    Beside the file for viewers comes a picture of one step as it was and as it is simulated, if matplotlib is
    installed.

    Parameters
    ----------
    path : Path
        Of the file for chrome://tracing or Perfetto.
    step : TrainingStep
    replica : Replica
    grid : ProcessGrid

    Attributes
    ----------
    times : StepTimes or None
        What the first pipeline's steps were made of, once that is known.
    communication : CommunicationTimes or None
        What the communication of the first data-parallel ranks costs, if there are gradients to sum.
    """

    def __init__(self, path: Path, step: TrainingStep, replica: Replica, grid: ProcessGrid) -> None:
        self._path, self._step, self._grid = path, step, grid
        self._schedule = complete(replica.pipeline.schedule)
        self._trace = Trace()
        self._done = 0
        self.times: StepTimes | None = None
        self.communication: CommunicationTimes | None = None

    def advance(self) -> None:
        """Note that a step is done; begin to record when it is time, and write when enough is recorded."""
        self._done += 1
        if self._done == _SKIPPED:
            self._step.record(self._trace)
        elif self._done == _SKIPPED + TRACED_STEPS:
            self.finish()

    def finish(self) -> None:
        """Write what is recorded, unless it is written already."""
        if not self._trace.spans:
            return
        self._step.record(None)
        offset = clock_offset(self._grid.comm)
        spans = self._grid.comm.allgather_obj(self._trace.shifted(offset))
        self._trace = Trace()
        # Ranks are numbered along the data-parallel axis first, so a pipeline's are as far apart as that is long.
        all_steps = [split_steps(mine) for mine in spans]
        self.communication = measure_communication(all_steps[: self._grid.shape["dp"]])
        steps = all_steps[:: self._grid.shape["dp"]]
        self.times, simulation = compare(self._schedule, steps)
        number = _middle([mine[-1].seconds for mine in steps[0]])
        real = recorded([mine[number] for mine in steps])

        def write() -> None:
            write_file(self._path, chrome_trace(spans))
            if importlib.util.find_spec("matplotlib"):
                from hpdl_mpi.parallel.pipeline.picture import draw_png

                panels = {"recorded": real, "simulated with measured costs": simulation}
                draw_png(self._schedule, panels, self._path.with_suffix(".png"))

        agree(self._grid.comm, write)


def _middle(values: list[float]) -> int:
    """Return the place of the median, the lower one of two."""
    return sorted(range(len(values)), key=values.__getitem__)[(len(values) - 1) // 2]


def explain(times: StepTimes, communication: CommunicationTimes | None) -> dict[str, Any]:
    """Return the numbers of a summary: a step as measured and as predicted, what the difference is made of; sums."""
    sums = None if communication is None else asdict(communication) | {"hidden": communication.hidden}
    return {
        "communication": sums,
        "step_seconds": times.step,
        "predicted_seconds": times.predicted,
        "bubble_measured": times.bubble_measured,
        "bubble_predicted": times.bubble_predicted,
        "difference": {
            "compute": times.compute - times.predicted_compute,
            "wait": times.wait - times.predicted_wait,
            "overhead": times.overhead,
        },
        "parts": asdict(times),
    }


def describe_communication(times: CommunicationTimes) -> str:
    """Return a line for people."""
    latest = max(range(len(times.lateness)), key=times.lateness.__getitem__)
    return (
        f"communication of data-parallel ranks: {1e3 * times.under_way:.2f} ms under way, {times.hidden:.0%} of it "
        f"hidden; waits {1e3 * times.exposed:.2f} ms, {1e3 * times.late:.2f} of them for late ranks; "
        f"the latest is rank {latest}, by {1e3 * times.lateness[latest]:.2f} ms"
    )


def describe_times(times: StepTimes) -> str:
    """Return a line for people."""
    more = {"compute": times.compute - times.predicted_compute, "waiting": times.wait - times.predicted_wait}
    parts = ", ".join(f"{name} {1e3 * seconds:+.2f}" for name, seconds in (more | {"overhead": times.overhead}).items())
    return (
        f"traced steps: {1e3 * times.step:.2f} ms, simulated {1e3 * times.predicted:.2f} ms ({parts}); "
        f"bubble {times.bubble_measured:.1%}, simulated {times.bubble_predicted:.1%}"
    )
