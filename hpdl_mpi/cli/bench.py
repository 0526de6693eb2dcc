"""``hpdl bench``: benchmarks. Each loads what it needs when it runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from hpdl_mpi.cli.alone import require_one_rank

app = typer.Typer(help="Measure, beside what others use today.", no_args_is_help=True)

JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result here too.")]


@app.callback()
def _group() -> None:
    """Keep `step` a command of its own while it is the only one."""


@app.command()
def step(
    model: Annotated[str, typer.Option(help="lenet or mlp.")] = "lenet",
    batch: Annotated[int, typer.Option(min=1, help="Samples of a step.")] = 128,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each contender.")] = 1,
    vs: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="torch-eager, torch-channels-last, torch-compile; torch is all of them."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=10, help="Every contender takes a turn in each.")] = 10,
    json_file: JsonFile = None,
) -> None:
    """Time a full training step: forward, loss, backward, update."""
    require_one_rank("hpdl bench step")
    from rich.console import Console

    from hpdl_mpi.base.files import check_destination, write_json
    from hpdl_mpi.bench import bench_step
    from hpdl_mpi.bench.table import step_table

    if json_file:
        check_destination(json_file)
    # Lines, because whatever moves on the screen would take a core's time from the contenders.
    result = bench_step(model, batch, threads, vs, num_rounds=rounds, say=partial(typer.echo, err=True))
    Console().print(step_table(result))
    if json_file:
        write_json(json_file, result)
