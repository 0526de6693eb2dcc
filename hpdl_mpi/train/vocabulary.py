"""The tokenizers of a run: kept in its folder when it begins, found again when text is made, held against the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hpdl_mpi.base.errors import InputError, StorageError, amended
from hpdl_mpi.base.files import write_file
from hpdl_mpi.data.text import Tokenizer, find_tokenizers, named_tokenizers, tokenizer_file
from hpdl_mpi.nn.search import Stepper
from hpdl_mpi.train.job import Job
from hpdl_mpi.train.runfolder import RunFolder
from hpdl_mpi.train.source import PathLike


def keep_tokenizers(folder: RunFolder, dataset: PathLike) -> None:
    """Copy the file of the tokenizers of a dataset, if it has one, into a run folder.

    Raises
    ------
    StorageError
        It cannot be read or written.
    """
    path = tokenizer_file(dataset)
    if path is None:
        return
    write_file(folder.tokenizers, _content(path))


def require_same_tokens(train: PathLike, test: PathLike) -> None:
    """Raise an `InputError` if two datasets have tokenizers, and others: a number would not be the same token."""
    _require_same(tokenizer_file(train), tokenizer_file(test), "the test data have other tokens than the training data")


def require_kept_tokens(folder: RunFolder, dataset: PathLike) -> None:
    """Raise an `InputError` if a run that goes on has kept the file of other tokenizers than its data have now."""
    if folder.tokenizers.is_file():
        _require_same(folder.tokenizers, tokenizer_file(dataset), "the training data have other tokens than the run")


def _require_same(own: Path | None, other: Path | None, what: str) -> None:
    if own and other and _content(own) != _content(other):  # what is the same is written the same
        raise InputError(
            what, where=other, expected=f"what {own} says", remedy="convert the text with --tokenizer and that file"
        )


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError("the file could not be read", where=path, found=error.strerror) from error


def find_run_tokenizers(run: PathLike, job: Job) -> dict[str, Tokenizer]:
    """Return the tokenizers of a run by the names of arrays: its own, or else those beside its training data.

    Raises
    ------
    InputError
        There are none, or the file is damaged.
    """
    folder = RunFolder(run)
    if folder.tokenizers.is_file():
        return named_tokenizers(folder.tokenizers)
    with amended(after=" The run folder has no tokenizer.json of its own."):
        found = find_tokenizers(job.data.train)
    if not found:
        raise InputError(
            "the run has no tokenizer",
            where=folder.tokenizers,
            remedy="copy the tokenizer.json that was written with the training data there",
        )
    return found


def text_tokenizer(run: PathLike, job: Job) -> Tokenizer:
    """Return the tokenizer of a run on running text.

    Raises
    ------
    InputError
        The run is none of a language model, or there is no tokenizer.
    """
    if job.data.context is None:
        what = "pairs: hpdl predict writes what it makes of sources" if job.data.pairs else "samples that are no text"
        raise InputError(
            "the run is none of a language model",
            where=run,
            found=f"one on {what}",
            expected="one on running text, with data.context",
        )
    if job.data.masking is not None:
        raise InputError(
            "the run is none of a language model",
            where=run,
            found="one that predicts hidden tokens (data.masking)",
            expected="one that predicts what follows",
        )
    found = find_run_tokenizers(run, job)
    if job.data.inputs not in found:
        raise _no_tokenizer(run, found, job.data.inputs)
    return found[job.data.inputs]


def _no_tokenizer(run: PathLike, found: dict[str, Tokenizer], name: str) -> InputError:
    return InputError(
        "no tokenizer of this array",
        where=run,
        found=", ".join(found) or "none",
        expected=name,
        remedy="copy the tokenizer.json that was written with the training data into the run folder",
    )


def pair_tokenizers(run: PathLike, job: Job) -> tuple[Tokenizer, Tokenizer]:
    """Return the tokenizers of the sources and of the targets of a run on pairs.

    Raises
    ------
    InputError
        The run is none on pairs, or there are no tokenizers, or one lacks the token that begins or ends a text.
    """
    if not job.data.pairs:
        raise InputError(
            "the run is none on pairs of text",
            where=run,
            found="lines of text to predict from",
            expected="one with data.pairs = true",
            remedy="name files of the samples that the run is about",
        )
    found = find_run_tokenizers(run, job)
    missing = [name for name in (job.data.inputs, job.data.targets) if name not in found]
    if missing:
        raise _no_tokenizer(run, found, missing[0])
    source, target = found[job.data.inputs], found[job.data.targets]
    for name, one, wanted in ((job.data.inputs, source, ("eos",)), (job.data.targets, target, ("bos", "eos"))):
        lacking = [special for special in wanted if special not in one.specials]
        if lacking:
            raise InputError(
                f"the tokenizer of {name} has no {lacking[0]}", where=run, remedy="convert the pairs again"
            )
    return source, target


class _Within:
    """Leaves out logits behind those of a vocabulary, for which a model may have room."""

    def __init__(self, step: Stepper, size: int) -> None:
        self._step, self._size = step, size

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        return self._step(tokens)[:, : self._size]

    def reorder(self, parents: np.ndarray) -> None:
        self._step.reorder(parents)


def within(step: Stepper, outputs: int, tokenizer: Tokenizer) -> Stepper:
    """Return what makes logits of the tokens of a vocabulary alone, of what makes so many.

    Raises
    ------
    InputError
        The vocabulary has more tokens.
    """
    require_room(tokenizer, outputs, "outputs")
    return step if outputs == tokenizer.vocabulary_size else _Within(step, tokenizer.vocabulary_size)


def require_room(tokenizer: Tokenizer, room: int, of: str) -> None:
    """Raise an `InputError` if a model has fewer outputs, or embeddings, than a vocabulary has tokens."""
    if room < tokenizer.vocabulary_size:
        raise InputError(
            "the tokenizer is none of this model",
            where="tokenizer.json",
            found=f"a vocabulary of {tokenizer.vocabulary_size}",
            expected=f"at most {room}, the model's {of}",
            remedy="use the file that was written with the training data",
        )
