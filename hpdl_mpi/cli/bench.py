"""``hpdl bench``: benchmarks. Each loads what it needs when it runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from hpdl_mpi.cli.alone import require_one_rank, several_ranks
from hpdl_mpi.cli.shared import Overrides

app = typer.Typer(help="Measure, beside what others use today.", no_args_is_help=True)

Rounds = Annotated[int, typer.Option(help="Every contender takes a turn in each; at least one.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result here too.")]


@app.command()
def step(
    model: Annotated[str, typer.Option(help="A reference model, such as lenet or resnet50.")] = "lenet",
    batch: Annotated[int, typer.Option(min=1, help="Samples of a step.")] = 128,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each contender.")] = 1,
    vs: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="torch-eager, torch-channels-last, torch-compile; torch is all three. torch-bf16: autocast. "
            "one-thread, exact: our own. On several ranks: torch-ddp, shared-memory or watched.",
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Every contender takes a turn in each; at least 10, or 1 of a profile.")
    ] = 10,
    sleep: Annotated[
        float | None,
        typer.Option(help="On several ranks: seconds that a stand-in sleeps in a step where the model would compute."),
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Show instead what each kind of layer takes.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Time a full training step: forward, loss, backward, update; under mpirun, on all ranks together."""
    from rich.console import Console

    from hpdl_mpi.base.errors import InputError, require
    from hpdl_mpi.base.files import check_destination, write_json
    from hpdl_mpi.bench import bench_step
    from hpdl_mpi.bench.table import profile_table, step_table

    say = partial(typer.echo, err=True)
    if profile:
        require_one_rank("hpdl bench step --profile")
    else:
        require("--rounds", rounds, rounds >= 10, "at least 10, of which medians are taken")
    if several_ranks():
        _step_of_ranks(json_file, model, batch, threads, vs, sleep_seconds=sleep, num_rounds=rounds, say=say)
        return
    if sleep is not None:
        raise InputError("needs several ranks", where="--sleep", remedy="start it with mpirun or srun")
    if json_file:
        check_destination(json_file)
    if profile and vs is not None:
        raise InputError(
            "a profile is of our own step alone", where="--profile", found=f"--vs {vs}", expected="no --vs"
        )
    if profile:
        from hpdl_mpi.bench.profile import profile_step

        result = profile_step(model, batch, threads, num_steps=rounds)
        Console().print(profile_table(result))
    else:
        # Lines, because whatever moves on the screen would take a core's time from the contenders.
        result = bench_step(model, batch, threads, vs, num_rounds=rounds, say=say)
        Console().print(step_table(result))
    if json_file:
        write_json(json_file, result)


def _step_of_ranks(json_file: Path | None, *args: Any, **settings: Any) -> None:
    """See `bench_data_parallel`, whose arguments it passes on."""
    from rich.console import Console

    from hpdl_mpi.base.files import check_destination, write_json
    from hpdl_mpi.bench.data_parallel import bench_data_parallel
    from hpdl_mpi.bench.table import step_table
    from hpdl_mpi.comm import agree, world

    comm = world()
    if json_file:
        agree(comm, partial(check_destination, json_file))
    result = bench_data_parallel(comm, *args, **settings)
    if comm.rank == 0:
        Console().print(step_table(result))
        if json_file:
            write_json(json_file, result)


@app.command()
def conv(
    only: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Part of the shapes' names, such as resnet50.", show_default="all shapes"),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            help="One of your own: batch=8,size=56,in_channels=64,out_channels=64, and if need be kernel_size, stride, "
            "groups and padding."
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each method.")] = 1,
    rounds: Rounds = 10,
    json_file: JsonFile = None,
) -> None:
    """Time the methods of convolution on shapes of well-known networks, and show which one a layer takes, and why."""
    require_one_rank("hpdl bench conv")
    from rich.console import Console

    from hpdl_mpi.base.errors import InputError
    from hpdl_mpi.base.files import check_destination, write_json
    from hpdl_mpi.bench.conv import bench_conv, described, named
    from hpdl_mpi.bench.table import conv_rules_table, conv_table

    if json_file:
        check_destination(json_file)
    if shape is not None and only is not None:
        raise InputError("names a shape of its own", where="--shape", found=f"--only {only}", expected="one of both")
    workloads = named(only or "") if shape is None else [described(shape)]
    result = bench_conv(workloads, threads, num_rounds=rounds, say=partial(typer.echo, err=True))
    Console().print(conv_table(result), conv_rules_table(result))
    if json_file:
        write_json(json_file, result)


@app.command()
def loader(
    path: Annotated[
        Path, typer.Argument(metavar="JOB.toml|DATA", help="A job, or a dataset alone.", show_default=False)
    ],
    overrides: Overrides = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples of a batch.", show_default="the job's")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the training step.")] = 1,
    rounds: Rounds = 10,
    json_file: JsonFile = None,
) -> None:
    """Time a job's loader (read, augment, convert) beside its training step, and show which one is the bottleneck."""
    require_one_rank("hpdl bench loader")
    from rich.console import Console

    from hpdl_mpi.base.files import check_destination, write_json
    from hpdl_mpi.bench.loader import bench_loader
    from hpdl_mpi.bench.table import loader_table

    if json_file:
        check_destination(json_file)
    say = partial(typer.echo, err=True)
    result = bench_loader(path, overrides or [], batch=batch, threads=threads, num_rounds=rounds, say=say)
    Console().print(loader_table(result))
    if json_file:
        write_json(json_file, result)


@app.command()
def generate(
    model: Annotated[str, typer.Option(help="gpt2_124m, gpt_small or gpt_nano.")] = "gpt2_124m",
    threads: Annotated[int, typer.Option(min=1, help="Threads of each contender.")] = 1,
    vs: Annotated[str | None, typer.Option(metavar="KEY", help="transformers.")] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens that are read first.")] = 32,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens that are written.")] = 64,
    rounds: Annotated[int, typer.Option(min=10, help="Every contender takes a turn in each.")] = 10,
    json_file: JsonFile = None,
) -> None:
    """Time how a language model writes text, one token after the other."""
    require_one_rank("hpdl bench generate")
    from rich.console import Console

    from hpdl_mpi.base.files import check_destination, write_json
    from hpdl_mpi.bench.generate import bench_generate
    from hpdl_mpi.bench.table import generate_table

    if json_file:
        check_destination(json_file)
    result = bench_generate(
        model,
        threads,
        vs,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        num_rounds=rounds,
        say=partial(typer.echo, err=True),
    )
    Console().print(generate_table(result))
    if json_file:
        write_json(json_file, result)


@app.command()
def pipeline(
    model: Annotated[str, typer.Option(help="A model to cut, such as mlp_deep, gpt_small or lenet.")] = "mlp_deep",
    schedule: Annotated[str, typer.Option(help="A name that `hpdl schedule show` knows, or a CSV file.")] = "1f1b",
    microbatches: Annotated[int, typer.Option("--microbatches", "-m", min=1, help="Micro-batches of a step.")] = 8,
    microbatch_size: Annotated[int, typer.Option(min=1, help="Samples of a micro-batch.")] = 64,
    chunks: Annotated[int | None, typer.Option(min=1, help="Stages on each rank, for interleaved.")] = None,
    cuts: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Layers at which stages begin.", show_default="equal times")
    ] = None,
    vs: Annotated[
        str | None, typer.Option(metavar="KEY", help="torch-pipelining, or another schedule of ours.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=10, help="Every contender takes a turn in each.")] = 10,
    json_file: JsonFile = None,
) -> None:
    """Time a training step on a pipeline of all ranks; start it with mpirun."""
    from rich.console import Console

    from hpdl_mpi.base.files import check_destination, write_json
    from hpdl_mpi.bench.pipeline import bench_pipeline
    from hpdl_mpi.bench.table import pipeline_table
    from hpdl_mpi.cli.sizes import parse_numbers
    from hpdl_mpi.comm import agree, world

    comm = world()
    bounds = agree(comm, lambda: None if cuts is None else parse_numbers(cuts, "--cuts", "such as 8,16"))
    if json_file:
        agree(comm, partial(check_destination, json_file))
    result = bench_pipeline(
        comm,
        model,
        schedule,
        microbatches,
        microbatch_size=microbatch_size,
        num_chunks=chunks,
        cuts=bounds,
        vs=vs,
        num_rounds=rounds,
        say=partial(typer.echo, err=True),
    )
    if comm.rank == 0:
        Console().print(pipeline_table(result))
        if json_file:
            write_json(json_file, result)


@app.command()
def allreduce(
    sizes: Annotated[str, typer.Option(help="Of the array; ... doubles.")] = "4KiB,...,128MiB",
    algorithm: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="Those of `hpdl schedule show`, and auto.", show_default="all"),
    ] = None,
    vs: Annotated[str | None, typer.Option(metavar="KEY", help="gloo: PyTorch's.")] = None,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune", help="Let the fastest be what `auto` takes on such ranks; needs sizes from 64KiB to 16MiB."
        ),
    ] = False,
    rounds: Annotated[int, typer.Option(min=10, help="Every contender takes a turn in each.")] = 10,
    json_file: JsonFile = None,
) -> None:
    """Time sums over all ranks, ours and the MPI library's; start it with mpirun."""
    from rich.console import Console

    from hpdl_mpi.base.files import check_destination, write_json
    from hpdl_mpi.bench.allreduce import bench_allreduce, write_rules
    from hpdl_mpi.bench.table import allreduce_table
    from hpdl_mpi.cli.sizes import parse_sizes
    from hpdl_mpi.comm import agree, world

    comm = world()
    wanted = agree(comm, lambda: parse_sizes(sizes, "--sizes"))
    if json_file:
        agree(comm, partial(check_destination, json_file))
    names = algorithm.split(",") if algorithm else None
    say = partial(typer.echo, err=True)
    result = bench_allreduce(comm, wanted, names, vs=vs, num_rounds=rounds, tune=tune, say=say)
    if comm.rank == 0:
        Console().print(allreduce_table(result))
        if json_file:
            write_json(json_file, result)
        if tune:
            typer.echo(f"written: {write_rules(result)}")
