"""``hpdl train``, ``eval``, ``predict``, ``export`` and ``summary``."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from hpdl_mpi.train.summary import Summary

from hpdl_mpi.base.errors import amended, in_line
from hpdl_mpi.base.output import counted
from hpdl_mpi.cli.alone import require_one_rank
from hpdl_mpi.cli.shared import Averaged, Best, Overrides, Pipelined, Run, all_ranks, destination
from hpdl_mpi.cli.text import predict_lines

JobFile = Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job file.", show_default=False)]
PREDICTIONS, WEIGHTS = "predictions.csv", "model.safetensors"
"""What `predict` and `export` write in the run folder, unless told."""


def train(
    job: JobFile,
    overrides: Overrides = None,
    run_dir: Annotated[
        str | None, typer.Option(metavar="DIR", help="The run folder.", show_default="runs/<name>")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the run folder.")] = False,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Record some steps of all ranks, for Perfetto and as a picture."),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Begin with the weights of a .safetensors file, as PyTorch names them."),
    ] = None,
    init_skip: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Leave out weights of such names, as 'fc.*'; can be repeated."),
    ] = None,
) -> None:
    """Train a job, alone or under mpirun or srun."""
    from hpdl_mpi.base.output import say
    from hpdl_mpi.comm import agree, world
    from hpdl_mpi.train import run_job
    from hpdl_mpi.train.report import describe_summary, progress_style

    comm = world()
    style = agree(comm, progress_style)
    settings = {"init.file": init, "init.skip": init_skip}
    overrides = [
        *(overrides or []),
        *(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in settings.items() if value is not None),
    ]
    summary = run_job(job, comm, overrides=overrides, run_dir=run_dir, resume=resume, trace=trace)
    if comm.rank == 0 and style != "silent":
        say(describe_summary(summary))


def evaluate(
    run: Run,
    data: Annotated[str | None, typer.Option(help="What to evaluate on.", show_default="the job's test data")] = None,
    pp: Pipelined = 1,
    ema: Averaged = True,
    best: Best = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", dir_okay=False, help="Write the metrics here too.")
    ] = None,
) -> None:
    """Evaluate the latest checkpoint of a run, or its best."""
    from hpdl_mpi.base.errors import InputError
    from hpdl_mpi.base.files import check_destination, write_json
    from hpdl_mpi.comm import agree
    from hpdl_mpi.train import open_run

    with all_ranks() as comm:
        if json_file:
            agree(comm, partial(check_destination, json_file))
        trainer, job = open_run(run, comm, pp=pp, ema=ema, best=best)
        path = job.data.test if data is None else data
        if path is None:
            raise InputError(
                "the job of the run names no test data", where=run, remedy="name data with --data", shared=True
            )
        metrics = trainer.evaluate(path)
    if comm.rank == 0:
        weights = "ema" if trainer.averaged else "trained"
        typer.echo(f"{in_line(path)}: {metrics}" + "  (ema)" * trainer.averaged)
        if json_file:
            values = {"data": str(path), "step": trainer.replica.step, "weights": weights, **vars(metrics)}
            write_json(json_file, values)


def predict(
    run: Run,
    text: Annotated[
        str | None, typer.Argument(metavar="[FILE]", help="What --input names.", show_default=False)
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--input",
            metavar="PATH",
            help="A folder of shards, a glob, or one .h5 or .npz file; of a run on pairs a .txt or .tsv file.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A .csv or .npz file; of pairs a .tsv file.",
            show_default=f"RUN/{PREDICTIONS}, or .tsv",
        ),
    ] = None,
    array: Annotated[str | None, typer.Option(help="The array in the files.", show_default="the job's inputs")] = None,
    beams: Annotated[
        int | None, typer.Option(min=1, help="Of pairs: search for the likeliest target with so many beams.")
    ] = None,
    length_penalty: Annotated[
        float | None,
        typer.Option(help="Of beams: targets are ranked by log(probability) / length ** this.", show_default="0.6"),
    ] = None,
    pp: Pipelined = 1,
    ema: Averaged = True,
    best: Best = False,
) -> None:
    """Write the class and its probability, or the value, of each sample of some files; of lines of text, the target.

    Where the outputs are not finite numbers, the class is -1 and the probability nan. With a run on pairs, the input is
    a file of text, each line a source (what follows a TAB is passed over); the output has lines of source TAB target.
    """
    from hpdl_mpi.comm import agree
    from hpdl_mpi.train import open_run
    from hpdl_mpi.train.predict import check_output, predict_files

    path_in = _one_input(text, source)
    of_lines = path_in.lower().endswith((".txt", ".tsv"))
    kind = "lines of text" if of_lines else "samples"
    of_samples = {"--array": array, "--pp": pp if pp != 1 else None}
    of_text = {"--beams": beams, "--length-penalty": length_penalty}
    _refuse_unused(of_samples if of_lines else of_text, kind)
    if of_lines:
        predict_lines(run, path_in, output, beams, length_penalty, ema=ema, best=best)
        return
    with all_ranks() as comm:
        path, replaces = agree(comm, lambda: destination(run, output, PREDICTIONS, check_output))
        trainer, job = open_run(run, comm, pp=pp, ema=ema, best=best)
        done = predict_files(trainer, path_in, job.data.inputs if array is None else array, path, job.data)
    if comm.rank == 0 and done is not None:
        predictions = counted(done.count, "prediction")
        typer.echo(f"{predictions} written to {in_line(path)}{replaces}")
        if done.bad:
            verb = "is not a finite number" if done.bad == 1 else "are not finite numbers"
            typer.echo(
                f"{done.bad} of {predictions} {verb}, the first of sample {done.first_bad}: look at the inputs",
                err=True,
            )


def _refuse_unused(options: Mapping[str, object], kind: str) -> None:
    """Raise an `InputError` if any of these options was given, which play no part in predictions of this kind."""
    from hpdl_mpi.base.errors import InputError

    for name, value in options.items():
        if value is not None:
            raise InputError(f"plays no part in predictions of {kind}", where=name, found=value, remedy="leave it out")


def _one_input(text: str | None, source: str | None) -> str:
    """Return what is to be predicted, named in either way."""
    from hpdl_mpi.base.errors import InputError

    if (text is None) == (source is None):
        found = "neither" if text is None else "both"
        raise InputError("what is to be predicted", where="--input", found=found, expected="FILE or --input PATH")
    return str(text if source is None else source)


def export(
    run: Run,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The file.", show_default=f"RUN/{WEIGHTS}")
    ] = None,
    file_format: Annotated[Literal["safetensors"], typer.Option("--format", help="Of the file.")] = "safetensors",
    pp: Pipelined = 1,
    ema: Averaged = True,
    best: Best = False,
) -> None:
    """Write the weights of a run under the names and in the layouts of PyTorch's state_dict."""
    from hpdl_mpi.base.files import check_destination
    from hpdl_mpi.comm import agree
    from hpdl_mpi.train import open_run

    with all_ranks() as comm:
        path, replaces = agree(comm, lambda: destination(run, output, WEIGHTS, check_destination))
        trainer, _ = open_run(run, comm, pp=pp, ema=ema, best=best)
        trainer.export(path)
    if comm.rank == 0:
        which = ", moving averages" if trainer.averaged else ""
        typer.echo(f"weights of step {trainer.replica.step}{which} written to {in_line(path)}{replaces}")


def summary(
    job: JobFile,
    overrides: Overrides = None,
    ranks: Annotated[
        int | None,
        typer.Option(min=1, help="Data-parallel ranks, or pipelines; by default parallel.dp, or 1."),
    ] = None,
    pp: Annotated[
        int | None, typer.Option(min=1, help="Ranks of a pipeline.", show_default="the job's parallel.pp")
    ] = None,
    input_shape: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Shape of a sample as stored, such as 224,224,3: no data are read.",
            show_default="that of the job's training data",
        ),
    ] = None,
) -> None:
    """Show a job's model: layers, output shapes, parameters, operations and memory per rank."""
    require_one_rank("hpdl summary")
    from rich.console import Console
    from rich.table import Table

    from hpdl_mpi.cli.sizes import parse_numbers
    from hpdl_mpi.train.choices import read_job
    from hpdl_mpi.train.summary import summarize

    stored = None if input_shape is None else tuple(parse_numbers(input_shape, "--input-shape", "such as 224,224,3"))
    settings = read_job(job, overrides or [])
    with amended(f"{job}: "):
        found = summarize(settings, ranks, pp, stored)
    table = Table(
        "layer", "kind", "output shape", "parameters", "operations per sample", title=f"input {found.input_shape}"
    )
    for row in found.rows:
        table.add_row(row.path, row.kind, str(row.output_shape), f"{row.num_parameters:,}", f"{row.operations:,}")
    parameters, operations = (sum(getattr(row, key) for row in found.rows) for key in ("num_parameters", "operations"))
    table.add_section()
    table.add_row("all", "", "", f"{parameters:,}", f"{operations:,}")
    memory = found.memory
    console = Console()
    console.print(table)
    whose = "a rank"
    if found.stages:
        console.print(_stage_table(found))
        whose = "the rank that takes most"
    console.print(
        f"memory of {whose} with micro-batches of {found.microbatch_size}, {found.num_microbatches} of them: "
        f"{_mib(memory.total)} = "
        f"parameters {_mib(memory.parameters)} + gradients {_mib(memory.gradients)} + "
        f"optimizer {_mib(memory.optimizer)} + activations {_mib(memory.activations)}",
        highlight=False,
        soft_wrap=True,
    )
    if found.reading:
        console.print(
            f"besides, to read the training data: buffers {_mib(found.reading.buffers)}, and blocks of files up to "
            f"{_mib(found.reading.cache)}; test data take theirs",
            highlight=False,
            soft_wrap=True,
        )


def _stage_table(found: Summary) -> Table:
    """Return a row for each stage of a pipeline."""
    from rich.table import Table

    table = Table(
        "rank",
        "layers",
        title=f"stages; simulated bubble {found.bubble:.1%}",
        caption="ms of a micro-batch, and how many are kept at most; MiB of parameters, of all that is fixed (with "
        "gradients and optimizer state), of activations, and of all",
    )
    for heading in ("forward", "backward", "kept", "params", "fixed", "activ.", "all"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in found.stages:
        memory = row.memory
        fixed = memory.parameters + memory.gradients + memory.optimizer
        table.add_row(
            str(row.rank),
            f"{row.first} to {row.last}",
            f"{1e3 * row.forward:.2f}",
            f"{1e3 * row.backward:.2f}",
            str(row.held),
            *(f"{nbytes / 2**20:.1f}" for nbytes in (memory.parameters, fixed, memory.activations, memory.total)),
        )
    return table


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB"
