"""What rank 0 shows of a run: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from typing import IO, Any, Protocol, cast

from hpdl_mpi import __version__
from hpdl_mpi.base.errors import in_line, require
from hpdl_mpi.base.output import Output, counted, say
from hpdl_mpi.data import Loader
from hpdl_mpi.kernels.jit import before_compiling, cache_folder
from hpdl_mpi.parallel import ProcessGrid, Replica
from hpdl_mpi.train.metrics import Metrics

_LINE_SECONDS = 10.0


class Reporter(Protocol):
    """Shows a run as it goes."""

    def say(self, text: str) -> None:
        """Show a line."""

    def step(self, step: int, metrics: Metrics, samples_per_second: float) -> None:
        """Show where the present epoch stands, after `step` steps in all."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class Silent:
    """Shows nothing: for all ranks but the first, and for scripts that ask for it."""

    def say(self, text: str) -> None:
        """Do nothing."""

    def step(self, step: int, metrics: Metrics, samples_per_second: float) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Lines:
    """Plain lines: what is said, and now and then where a long epoch stands."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._last = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line."""
        say(text)
        self._last = time.monotonic()

    def step(self, step: int, metrics: Metrics, samples_per_second: float) -> None:
        """Print a line if none was printed for ten seconds."""
        if time.monotonic() - self._last > _LINE_SECONDS:
            self.say(f"  step {step}/{self._num_steps}  {metrics}  {samples_per_second:.0f} samples/s")

    def close(self) -> None:
        """Do nothing."""


class Bar:
    """A progress bar over all steps, with what is said above it."""

    def __init__(self, num_steps: int, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(
            *columns, console=Console(file=cast(IO[str], Output()), force_terminal=True), refresh_per_second=4
        )
        self._task = self._progress.add_task("", total=num_steps, completed=done, status="")
        self._progress.start()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(text, highlight=False, soft_wrap=True)

    def step(self, step: int, metrics: Metrics, samples_per_second: float) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=step, status=f"{metrics}  {samples_per_second:.0f} samples/s")

    def close(self) -> None:
        """Stop the bar."""
        self._progress.stop()


def make_reporter(rank: int, num_steps: int, done: int) -> Reporter:
    """Return what shows a run on this rank: rank 0 alone shows it, in its `progress_style`."""
    style = progress_style() if rank == 0 else "silent"
    if style == "silent":
        return Silent()
    return Bar(num_steps, done) if style == "bar" else Lines(num_steps)


def progress_style() -> str:
    """Return how a run is shown: "bar", "plain" or "silent", as ``HPDL_PROGRESS`` says; by default as output allows.

    A launcher on the way to the terminal hides it, so that a bar must be asked for.

    Raises
    ------
    InputError
        ``HPDL_PROGRESS`` says something else.
    """
    style = os.environ.get("HPDL_PROGRESS") or ("bar" if sys.stdout and sys.stdout.isatty() else "plain")
    require("HPDL_PROGRESS", style, style in ("bar", "plain", "silent"), "bar, plain or silent")
    return style


def open_report(grid: ProcessGrid, threads: int) -> None:
    """Say who begins, ranks and their threads, and that kernels are compiled if it comes to that: it takes a while."""
    comm = grid.comm
    if comm.rank != 0 or progress_style() == "silent":
        return
    ranks = f"{counted(comm.size, 'rank')} on {counted(comm.num_nodes, 'node')}, {counted(threads, 'thread')} each"
    axes = " x ".join(f"{name} {size}" for name, size in grid.shape.items())
    say(f"hpdl_mpi {__version__}: {ranks}; {axes}")
    before_compiling(lambda: say(f"compiling kernels, which later runs find in {in_line(cache_folder().parent)}"))


def headline(replica: Replica, loader: Loader, num_steps: int) -> str:
    """Return the first line about the training: the model, the data, the steps ahead."""
    parameters = f"{replica.num_parameters:,} parameters ({replica.dtype})"
    samples = f"{loader.dataset.num_samples:,} samples in batches of {loader.global_batch_size}"
    return f"{parameters}; {samples}; steps {replica.step} to {num_steps}"


def describe_summary(summary: dict[str, Any]) -> str:
    """Return the last lines of a run: what it reached, and how fast."""
    scores = [
        ("test loss", "test_loss", ".4f"),
        ("test accuracy", "test_accuracy", ".4f"),
        ("top5", "test_top5", ".4f"),
        ("test rmse", "test_rmse", ".6g"),
    ]
    reached = ", ".join(f"{label} {summary[key]:{style}}" for label, key, style in scores if summary[key] is not None)
    rate = summary["samples_per_second"]
    speed = f"; {rate:.0f} samples/s" if rate else ""
    length = f"{counted(summary['steps'], 'step')} on {counted(summary['world_size'], 'rank')}"
    return f"{length}: {reached or 'done'}{speed}"
