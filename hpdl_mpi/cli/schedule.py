"""``hpdl schedule``: schedules of pipelines and collectives, to look at, compare and edit before any of them runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpdl_mpi.cli.alone import require_one_rank
from hpdl_mpi.cli.collectives import COLLECTIVES, show_collective

if TYPE_CHECKING:
    from hpdl_mpi.parallel.pipeline import Schedule, Simulation

app = typer.Typer(help="Look at schedules of pipelines and collectives.", no_args_is_help=True)

_PIPELINES, _COLLECTIVES = "Options of pipelines", "Options of collectives"
"""Panels of the help; an option that is in one means nothing to schedules of the other family, and is refused there."""

_SHOWN_PEAKS = 32
MAX_SECONDS = 1e9

Seconds = Annotated[float, typer.Option(min=0.0, help="For one stage and micro-batch.", rich_help_panel=_PIPELINES)]


@app.callback()
def _group() -> None:
    """Keep `show` a command of its own while it is the only one."""


@app.command()
def show(
    ctx: typer.Context,
    schedule: Annotated[
        str,
        typer.Argument(
            help="gpipe, 1f1b, interleaved, zb-h1, zb-h2, zb-v, or a .csv file; or a collective: allreduce, "
            "reduce-scatter, all-gather."
        ),
    ],
    ranks: Annotated[
        int, typer.Option("-p", "-n", "--ranks", min=1, help="Ranks of the pipeline, or of the collective.")
    ] = 4,
    microbatches: Annotated[
        int,
        typer.Option("-m", "--microbatches", min=1, help="Micro-batches of a batch.", rich_help_panel=_PIPELINES),
    ] = 8,
    chunks: Annotated[int | None, typer.Option(min=1, help="Stages on each rank.", rich_help_panel=_PIPELINES)] = None,
    forward: Seconds = 1.0,
    dgrad: Seconds = 1.0,
    wgrad: Seconds = 1.0,
    message: Annotated[
        float, typer.Option(min=0.0, help="From one rank to the next.", rich_help_panel=_PIPELINES)
    ] = 0.0,
    png: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a picture (needs matplotlib).", rich_help_panel=_PIPELINES),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the schedule, to edit it.", rich_help_panel=_PIPELINES),
    ] = None,
    algorithm: Annotated[str, typer.Option(help="Of the collective.", rich_help_panel=_COLLECTIVES)] = "ring",
    size: Annotated[str, typer.Option(help="Of the array, such as 64KiB.", rich_help_panel=_COLLECTIVES)] = "1MiB",
    machines: Annotated[
        int, typer.Option(min=1, help="That the ranks are on, neighbours together.", rich_help_panel=_COLLECTIVES)
    ] = 1,
    latency: Annotated[
        float, typer.Option(min=0.0, help="Seconds of an empty message.", rich_help_panel=_COLLECTIVES)
    ] = 20e-6,
    bandwidth: Annotated[
        float, typer.Option(min=1.0, help="Bytes per second that a rank sends.", rich_help_panel=_COLLECTIVES)
    ] = 125e6,
    reduction: Annotated[
        float, typer.Option(min=0.0, help="Seconds to add a byte.", rich_help_panel=_COLLECTIVES)
    ] = 1e-10,
    copy: Annotated[
        float,
        typer.Option(min=0.0, help="Seconds to copy a byte through shared memory.", rich_help_panel=_COLLECTIVES),
    ] = 1e-10,
    signal: Annotated[
        float,
        typer.Option(
            min=0.0, help="Seconds until a rank sees another's signal in shared memory.", rich_help_panel=_COLLECTIVES
        ),
    ] = 5e-7,
) -> None:
    """Prove a schedule, simulate it with given costs, and draw it."""
    require_one_rank("hpdl schedule show")
    if schedule in COLLECTIVES:
        from hpdl_mpi.base.errors import require
        from hpdl_mpi.cli.sizes import parse_size
        from hpdl_mpi.comm.predict import Costs

        _refuse(ctx, schedule, _PIPELINES)
        seconds = {"latency": latency, "bandwidth": bandwidth, "reduction": reduction, "copy": copy, "signal": signal}
        for option, cost in seconds.items():
            require(f"--{option}", cost, True, "a finite number")
        costs = Costs(**seconds)
        for line in show_collective(schedule, algorithm, ranks, machines, parse_size(size, "--size"), costs):
            typer.echo(line)
    else:
        _check_name(schedule)
        _refuse(ctx, schedule, _COLLECTIVES)
        seconds = {"forward": forward, "dgrad": dgrad, "wgrad": wgrad, "message": message}
        _show_pipeline(schedule, ranks, microbatches, chunks, seconds, png, csv)


def _check_name(schedule: str) -> None:
    """Raise an InputError unless it is a pipeline's schedule."""
    from hpdl_mpi.base.errors import InputError
    from hpdl_mpi.parallel.pipeline import FAMILIES

    if schedule not in FAMILIES and not schedule.lower().endswith(".csv"):
        expected = f"{', '.join((*FAMILIES, *COLLECTIVES))}, or a file that ends in .csv"
        raise InputError("no such schedule", where="hpdl schedule show", found=repr(schedule), expected=expected)


def _refuse(ctx: typer.Context, schedule: str, panel: str) -> None:
    """Raise an InputError if options of a panel were given: this schedule would go without them, and say nothing."""
    from hpdl_mpi.base.errors import InputError

    options = [param for param in ctx.command.params if getattr(param, "rich_help_panel", None) == panel]
    given = [max(option.opts, key=len) for option in options if _is_given(ctx, option.name or "")]
    if given:
        raise InputError(
            f"takes no {panel.lower()}",
            where=f"hpdl schedule show {schedule}",
            found=" and ".join(given),
            remedy="see with `hpdl schedule show --help` whose which option is",
        )


def _is_given(ctx: typer.Context, name: str) -> bool:
    """Return whether a parameter was typed, even if it is what it would be by itself."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"  # of Typer's own Click, whose enum it keeps to itself


def _show_pipeline(
    schedule: str,
    ranks: int,
    microbatches: int,
    chunks: int | None,
    seconds: dict[str, float],
    png: Path | None,
    csv: Path | None,
) -> None:
    """Prove, simulate and draw a pipeline's schedule; `seconds` are those of a `StageCost`."""
    from rich.console import Console

    from hpdl_mpi.base.errors import InputError, require
    from hpdl_mpi.base.files import check_destination, write_file
    from hpdl_mpi.parallel.pipeline import (
        StageCost,
        check,
        complete,
        format_schedule,
        make_schedule,
        simulate,
    )
    from hpdl_mpi.parallel.pipeline.picture import draw_png, draw_text

    for key, value in seconds.items():
        require(f"--{key}", value, value <= MAX_SECONDS, f"at most {MAX_SECONDS:g}")
    for file in filter(None, (png, csv)):
        check_destination(file)
    if chunks is not None and schedule.lower().endswith(".csv"):
        raise InputError("a file says itself how many stages ranks have", where="--chunks", found=chunks)
    if png and png == csv:
        raise InputError("picture and schedule would overwrite each other", where="--png and --csv", found=png)
    made = make_schedule(schedule, ranks, microbatches, chunks)
    check(made, complete=False)
    as_run = complete(made)
    check(as_run, complete=True)
    costs = [StageCost(**seconds)] * made.num_stages
    simulation = simulate(made, costs)
    title = f"{schedule}: {ranks} ranks, {made.num_stages} stages, {microbatches} micro-batches"
    if csv:
        write_file(csv, format_schedule(made).encode())
    if png:
        draw_png(made, {title: simulation}, png)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(title, style="bold")
    for row in draw_text(made, simulation, console.width):
        console.print(row)
    for line in _facts(schedule, made, simulation, simulate(as_run, costs)):
        console.print(line)


def _facts(name: str, schedule: Schedule, simulation: Simulation, as_run: Simulation) -> list[str]:
    """Return what a schedule costs, in words."""
    from hpdl_mpi.parallel.pipeline import FAMILIES

    lines = ["F forward, I dgrad, W wgrad, B both; small letters on a rank's second stage, fourth, and so on", ""]
    lines.append(f"time of a batch       {_time_and_bubble(simulation, synchronized=True)}")
    if simulation.period < simulation.makespan:
        lines.append(
            f"from step to step     {_time_and_bubble(simulation, synchronized=False)}, if ranks did not wait for"
        )
        lines.append("                      one another after a step, as clipping by the global norm makes them and")
        lines.append("                      hpdl train always does, to see that the loss is a number")
    if as_run.makespan < simulation.makespan:
        lines.append(
            f"with early messages   {_time_and_bubble(as_run, synchronized=True)}: dx leaves before dw is computed"
        )
    if name in FAMILIES:
        chunks = schedule.num_stages // schedule.num_ranks
        bubble = FAMILIES[name].bubble(schedule.num_ranks, schedule.num_microbatches, chunks)
        lines.append(f"published bubble      {bubble} = {float(bubble):.1%} for F = I = W and enough micro-batches")
    shown = simulation.peak_bytes[:_SHOWN_PEAKS]
    more = len(simulation.peak_bytes) - len(shown)
    peaks = " ".join(f"{peak:g}" for peak in shown) + (f" and {more} more" if more else "")
    lines.append(f"most activations kept {peaks} on ranks 0, 1, ..., in micro-batches of a stage")
    return lines


def _time_and_bubble(simulation: Simulation, *, synchronized: bool) -> str:
    time = simulation.makespan if synchronized else simulation.period
    return f"{time:g}, bubble {simulation.bubble_fraction(synchronized=synchronized):.1%}"
