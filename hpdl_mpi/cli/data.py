"""`hpdl data`: convert, describe and check datasets. Heavy imports wait until a command runs."""

from __future__ import annotations

import csv
import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hpdl_mpi.base.agree import Alone, Group
from hpdl_mpi.base.errors import HpdlError, in_line
from hpdl_mpi.base.launcher import launched
from hpdl_mpi.base.output import counted
from hpdl_mpi.cli.alone import require_one_rank

if TYPE_CHECKING:
    from hpdl_mpi.data.info import FileSummary
    from hpdl_mpi.data.verify import ShardReport
    from hpdl_mpi.data.verify_text import TextReport

app = typer.Typer(help="Convert, describe and check datasets.", no_args_is_help=True)
MAX_ECHOED = 10

DatasetPath = Annotated[str, typer.Argument(metavar="PATH", help="A folder of shards, a glob, or one .h5 file.")]


@app.command()
def convert(
    source: Annotated[
        list[Path],
        typer.Argument(
            help="A folder or archive of images, a folder per class; of CIFAR's binary files; a folder with IDX files,"
            " one IDX file of images, .npz, .csv; .txt or .tsv files, or a folder of such."
        ),
    ],
    folder: Annotated[Path, typer.Argument(help="Where FOLDER/train and FOLDER/test go; absent or empty.")],
    shards: Annotated[int | None, typer.Option(min=1, help="Files of the training split.")] = None,
    test_shards: Annotated[int | None, typer.Option(min=1, help="Files of each other split.")] = None,
    per_class: Annotated[int | None, typer.Option(min=1, help="Keep so many samples of each class.")] = None,
    test_per_class: Annotated[int | None, typer.Option(min=1, help="The same for the test split.")] = None,
    test_fraction: Annotated[float, typer.Option(min=0, max=1, help="Part to set aside for test.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the test split, the choice per class, the order of images.")] = 0,
    compression: Annotated[int, typer.Option(min=0, max=9, help="Level of gzip.")] = 6,
    targets: Annotated[str, typer.Option(help="The array of class numbers, for --per-class.")] = "y",
    target: Annotated[str | None, typer.Option(help="CSV: the column to predict.")] = None,
    classes: Annotated[bool, typer.Option("--classes", help="CSV: the target's numbers name classes.")] = False,
    missing: Annotated[
        Literal["error", "drop", "mean", "median", "zero"], typer.Option(help="CSV: what to do with missing values.")
    ] = "error",
    size: Annotated[
        int | None, typer.Option(min=1, help="Images: scale the shorter side to this, cut a square from the middle.")
    ] = None,
    grayscale: Annotated[bool, typer.Option("--grayscale", help="Images: one channel instead of three.")] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Images and pairs: leave out what cannot be used, and list it.")
    ] = False,
    tokens: Annotated[Literal["characters", "words", "bpe"] | None, typer.Option(help="Text: what a token is.")] = None,
    vocab_size: Annotated[int | None, typer.Option(min=1, help="Text: tokens that there are, of bpe or words.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Text: a tokenizer.json to take, ours or of the library tokenizers.")
    ] = None,
    pairs: Annotated[bool, typer.Option("--pairs", help="Text: each line is source, TAB, target.")] = False,
    target_tokens: Annotated[
        Literal["characters", "words", "bpe"] | None, typer.Option(help="Pairs: what a token of the target is.")
    ] = None,
    mask_token: Annotated[
        bool, typer.Option("--mask-token", help="Running text: ids for padding and for what a model is to predict.")
    ] = False,
) -> None:
    """Convert images, CIFAR, IDX, NPZ, CSV or text into sharded HDF5, alone or under mpirun or srun."""
    from hpdl_mpi.data.convert import SKIPPED, Options
    from hpdl_mpi.data.convert import convert as run
    from hpdl_mpi.data.info import summarize

    options = Options(
        shards=shards,
        test_shards=test_shards,
        per_class=per_class,
        test_per_class=test_per_class,
        test_fraction=test_fraction,
        seed=seed,
        compression=compression,
        targets=targets,
        target=target,
        classes=classes,
        missing=missing,
        size=size,
        grayscale=grayscale,
        skip_bad=skip_bad,
        tokens=tokens,
        vocab_size=vocab_size,
        tokenizer=tokenizer,
        pairs=pairs,
        target_tokens=target_tokens,
        mask_token=mask_token,
    )
    # Pillow's own words about an image that we refuse, or leave out.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")
    ranks = _ranks()
    with _stoppable() as check:
        splits = run(source, folder, options, ranks, check)
    if ranks.rank == 0:
        for split in splits:
            typer.echo(f"{in_line(split)}: {_totals(summarize(split))}")
        _echo_skipped(splits[0].parent / SKIPPED)


class _Signalled(BaseException):
    """What a signal raises: nobody who catches an Exception takes it for one."""


@contextmanager
def _stoppable() -> Iterator[Callable[[], None]]:
    """Let Ctrl-C and SIGTERM end what runs inside, so that what is half done is cleared away.

    Yields
    ------
    check : callable
        Ends it too, where a signal has come before: what is raised while Python runs a callback of a weak reference, as
        it does in the midst of HDF5's, is lost.
    """
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        raise _Signalled

    def check() -> None:
        if received:
            raise _Signalled

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check
    except _Signalled:
        if received[0] == signal.SIGINT:
            raise KeyboardInterrupt from None
        error = HpdlError("stopped by SIGTERM; nothing was written")
        error.exit_code = 128 + signal.SIGTERM
        raise error from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ranks() -> Group:
    """Return the ranks of the job; a process that no launcher started leaves MPI alone, which login nodes may lack."""
    found = launched(os.environ)
    if found is None or found[1] == 1:
        return Alone()
    from hpdl_mpi.comm import world

    return world()


def _echo_skipped(path: Path) -> None:
    """Say what was left out: the first of it, and where all of it is listed."""
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="backslashreplace", newline="") as file:
        _, *rows = csv.reader(file)
    typer.echo(f"left out: {len(rows)}, all of them in {in_line(path)}")
    for name, reason in rows[:MAX_ECHOED]:
        typer.echo(f"  {in_line(name)}: {in_line(reason)}")


@app.command()
def info(path: DatasetPath) -> None:
    """Print shards, shapes, types, counts, chunks and compression, and how text begins; read no other samples."""
    require_one_rank("hpdl data info")
    from rich.console import Console
    from rich.table import Table

    from hpdl_mpi.data.info import summarize, summarize_text

    files = summarize(path)
    arrays = Table("array", "sample", "type", "chunks", "filters", "stored", title="Arrays")
    for name in dict.fromkeys(array.name for file in files for array in file.arrays):
        same = [array for file in files for array in file.arrays if array.name == name]
        arrays.add_row(
            name,
            _variants(array.shape[1:] for array in same),
            _variants(array.dtype for array in same),
            _variants(array.chunks or "contiguous" for array in same),
            _variants(array.filters or "none" for array in same),
            _size(sum(array.stored_bytes for array in same)),
        )
    shards = Table("file", "samples", "size", title="Files")
    for file in files:
        counts = _variants(array.shape[0] if array.shape else 1 for array in file.arrays)
        shards.add_row(in_line(file.path.name), counts, _size(file.file_bytes))
    console = Console()
    console.print(arrays, shards)
    for array in files[0].arrays:
        for key, texts in array.texts.items():
            console.print(f"{array.name}: {key}: {in_line(', '.join(texts))}", markup=False, highlight=False)
    console.print(_totals(files))
    for text in summarize_text(path):
        size = f"{counted(text.tokens, 'token')}, {text.kind}, a vocabulary of {text.vocabulary_size}"
        console.print(f"{text.name}: {size}, begins: {in_line(text.begin)}", markup=False, highlight=False)


@app.command()
def verify(
    path: DatasetPath,
    inputs: Annotated[str | None, typer.Option(help="The array of inputs, by default x, or tokens.")] = None,
    targets: Annotated[str | None, typer.Option(help="The array of targets, by default y.")] = None,
) -> None:
    """Read everything and check it: checksums, gaps, finite numbers, labels, tokens, missing shards."""
    require_one_rank("hpdl data verify")
    from hpdl_mpi.data.text import own_tokenizers
    from hpdl_mpi.data.verify import verify as run
    from hpdl_mpi.data.verify_text import verify_text

    if inputs is None and targets is None and (tokenizers := own_tokenizers(path)):
        for shard in verify_text(path, tokenizers):
            typer.echo(_text_line(shard))
        return
    for report in run(path, inputs or "x", targets or "y"):
        typer.echo(_line(report))


def _text_line(report: TextReport) -> str:
    parts = [f"{in_line(report.path)}: sound"]
    if report.num_pairs is not None:
        parts.append(counted(report.num_pairs, "pair"))
    for name, usage in report.usage.items():
        parts.append(f"{counted(usage.tokens, 'token')} in {name}, {usage.ids} of {usage.vocabulary_size} ids")
    return ", ".join([*parts, *_doubts(report.checksums)])


def _line(report: ShardReport) -> str:
    parts = [f"{in_line(report.path)}: sound", counted(report.num_samples, "sample")]
    if report.class_counts is not None:
        present = report.class_counts[report.class_counts > 0]
        least, most = present.min(), present.max()
        sizes = counted(most, "sample") if least == most else f"{least} to {most} samples"
        parts.append(f"{counted(len(present), 'class', 'classes')} of {sizes}")
    if report.target_range is not None:
        parts.append("targets from {:g} to {:g}".format(*report.target_range))
    return ", ".join([*parts, *_doubts(report.checksums)])


def _doubts(checksums: bool) -> list[str]:
    return [] if checksums else ["no checksums: damage to the numbers would go unseen"]


def _totals(files: list[FileSummary]) -> str:
    arrays = [f"{array.name} {('N', *array.shape[1:])} {array.dtype}".replace("'", "") for array in files[0].arrays]
    samples = sum(file.arrays[0].shape[0] for file in files if file.arrays and file.arrays[0].shape)
    stored = _size(sum(file.file_bytes for file in files))
    return f"{len(files)} {'file' if len(files) == 1 else 'files'}, N = {samples}, {', '.join(arrays)}, {stored}"


def _variants(values: Iterable[object]) -> str:
    """Return what is stored, or all that is where files differ."""
    return " or ".join(dict.fromkeys(map(str, values)))


def _size(nbytes: int) -> str:
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= factor:
            return f"{nbytes / factor:.1f} {unit}"
    return f"{nbytes} B"
