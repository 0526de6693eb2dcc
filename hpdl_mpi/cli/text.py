"""``hpdl generate``, and ``hpdl predict`` of lines of text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpdl_mpi.base.errors import in_line
from hpdl_mpi.base.output import counted
from hpdl_mpi.cli.alone import require_one_rank
from hpdl_mpi.cli.shared import Averaged, Best, Run, all_ranks, destination

LINES = "predictions.tsv"
"""What `predict` of lines writes in the run folder, unless told."""


def generate(
    run: Run,
    prompt: Annotated[
        str, typer.Option(metavar="TEXT", help="What the text begins with.", show_default="a new line, or a begin")
    ] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens that are added, at most.")] = 200,
    temperature: Annotated[float, typer.Option(help="Below 1 what is likely becomes likelier.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from so many of the likeliest tokens; 0: from all.")] = 40,
    top_p: Annotated[float, typer.Option(help="Draw from those that have this probability together.")] = 0.95,
    greedy: Annotated[bool, typer.Option("--greedy", help="Take the likeliest token each time.")] = False,
    beams: Annotated[int | None, typer.Option(min=1, help="Search for the likeliest text with so many beams.")] = None,
    length_penalty: Annotated[
        float, typer.Option(help="Of beams: texts are ranked by log(probability) / length ** this.")
    ] = 0.6,
    end: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Stop after this token.", show_default="the end of a text, if there is one"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same text.")] = 0,
    num_samples: Annotated[int, typer.Option(min=1, help="Draw so many texts.")] = 1,
    ema: Averaged = True,
    best: Best = False,
) -> None:
    """Write text with the language model of a run, as it comes."""
    require_one_rank("hpdl generate")
    from hpdl_mpi.base.errors import InputError
    from hpdl_mpi.train import open_run
    from hpdl_mpi.train.generate import Wanted, generate_text
    from hpdl_mpi.train.runfolder import RunFolder
    from hpdl_mpi.train.vocabulary import text_tokenizer

    wanted = Wanted(max_tokens, temperature, top_k, top_p, seed, greedy, beams, length_penalty, end)
    unused = ["length_penalty"] if beams is None else ["greedy"]
    if greedy or beams is not None:
        unused += ["temperature", "top_k", "top_p", "seed"]
    given = [name for name in unused if getattr(wanted, name) != getattr(Wanted(), name)]
    given += ["num_samples"] * (num_samples > 1 and (greedy or beams is not None))
    if given:
        way = "--beams" if beams is not None else "--greedy" if greedy else "draws"
        found = f"--{given[0].replace('_', '-')}"
        raise InputError("an option that plays no part", where=way, found=found, remedy="leave one out")
    tokenizer = text_tokenizer(run, RunFolder(run).read_job())
    with all_ranks() as comm:
        trainer, _ = open_run(run, comm, ema=ema, best=best)
        for sample in range(num_samples):
            for piece in generate_text(trainer, tokenizer, prompt, wanted, sample=sample):
                typer.echo(piece, nl=False)
            typer.echo()
            if sample < num_samples - 1:
                typer.echo("---")
    if (tokenizer.encode(prompt) == tokenizer.unk).any():
        typer.echo("what is not in the vocabulary was taken for an unknown: in --prompt", err=True)


def predict_lines(
    run: Path,
    source: str,
    output: Path | None,
    beams: int | None,
    length_penalty: float | None,
    *,
    ema: bool,
    best: bool,
) -> None:
    """Write what a run on pairs makes of the lines of a file."""
    require_one_rank("hpdl predict of text")
    from hpdl_mpi.base.errors import InputError
    from hpdl_mpi.train import open_run
    from hpdl_mpi.train import predict_lines as lines
    from hpdl_mpi.train.runfolder import RunFolder
    from hpdl_mpi.train.vocabulary import pair_tokenizers

    if length_penalty is not None and beams is None:
        raise InputError("ranks beams, and there are none", where="--length-penalty", remedy="give --beams too")
    path, replaces = destination(run, output, LINES, lines.check_lines_output)
    tokenizers = pair_tokenizers(run, RunFolder(run).read_job())
    with all_ranks() as comm:
        trainer, _ = open_run(run, comm, ema=ema, best=best)
        done = lines.predict_lines(
            trainer,
            *tokenizers,
            Path(source),
            path,
            beams=beams,
            length_penalty=0.6 if length_penalty is None else length_penalty,
        )
    typer.echo(f"{counted(done.num_lines, 'prediction')} written to {in_line(path)}{replaces}")
    if done.unknown:
        found = f"{counted(done.unknown, 'line')}, the first is line {done.first_unknown}"
        typer.echo(f"what is not in the vocabulary was taken for an unknown: in {found}", err=True)
