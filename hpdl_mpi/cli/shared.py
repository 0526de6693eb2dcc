"""What several commands share: arguments, the ranks of a job, where a result goes."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpdl_mpi.base.errors import amended

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hpdl_mpi.comm import Communicator

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the job; can be repeated.")
]
Pipelined = Annotated[
    int, typer.Option(min=1, help="Ranks that share a copy of the model, if it is too large for one.")
]
Averaged = Annotated[
    bool, typer.Option("--ema/--no-ema", help="Take the moving average of the weights, if the run has one.")
]
Best = Annotated[bool, typer.Option("--best", help="Take the best checkpoint, not the latest: of early stopping.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.", show_default=False)]


@contextmanager
def all_ranks() -> Iterator[Communicator]:
    """Yield all ranks of the job, under watch."""
    from hpdl_mpi.comm import world
    from hpdl_mpi.train.job import Parallel
    from hpdl_mpi.train.launch import patient_seconds

    comm = world()
    with comm.watched(patient_seconds(Parallel().timeout_seconds)):
        yield comm


def destination(run: Path, output: Path | None, name: str, check: Callable[[Path], None]) -> tuple[Path, str]:
    """Return the full path of a result, by default of that name in the run folder, and what to say if it is there."""
    path = run / name if output is None else output
    if output is not None:
        check(path)
    elif run.is_dir():  # if not, what is wrong is the run
        with amended(after=" Or name another one with --output."):
            check(path)
    return Path(os.path.abspath(path)), ", which replaces the one that was there" if path.exists() else ""
