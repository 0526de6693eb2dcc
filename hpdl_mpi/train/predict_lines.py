"""What a model of pairs makes of lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hpdl_mpi.base.errors import InputError, amended
from hpdl_mpi.base.files import check_destination, write_file
from hpdl_mpi.data.convert.text_files import lines
from hpdl_mpi.data.pair_batch import PAD
from hpdl_mpi.data.text import Tokenizer
from hpdl_mpi.nn import Embedding, walk
from hpdl_mpi.nn.encoder_decoder import Halves, decoder_of, halves
from hpdl_mpi.nn.search import beam_search, generate, greedy
from hpdl_mpi.train.trainer import Trainer
from hpdl_mpi.train.vocabulary import require_room, within

_BATCH = 64
"""Lines that are decoded together, those of like lengths."""

_ESCAPES = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})
"""Of what would be taken for the end of a column or of a line."""


class PredictedLines(NamedTuple):
    """How many lines were written, how many had something that is not in the vocabulary, and the first of these."""

    num_lines: int
    unknown: int
    first_unknown: int | None


def check_lines_output(output: Path) -> None:
    """Raise an `InputError` if predictions of lines cannot be written to this file."""
    if output.suffix != ".tsv":
        remedy = "name a file that ends so"
        raise InputError(
            "a file of unknown format", where="--output", found=output.suffix, expected=".tsv", remedy=remedy
        )
    check_destination(output)


def predict_lines(
    trainer: Trainer,
    source: Tokenizer,
    target: Tokenizer,
    path: Path,
    output: Path,
    *,
    beams: int | None = None,
    length_penalty: float = 0.6,
) -> PredictedLines:
    """Write lines of source TAB prediction; local, on a rank that holds the whole model.

    A TAB or the end of a line in a prediction is written as in Python, ``\\t`` or ``\\n``.

    Parameters
    ----------
    trainer : Trainer
        Holds a model that was trained on pairs.
    source, target : Tokenizer
    path : Path
        A file of lines; what follows a TAB is passed over.
    output : Path
        A file that `check_lines_output` has found possible.
    beams : int, optional
        Search with so many; by default the likeliest token is taken each time.
    length_penalty : float
        See `nn.search.beam_search`.

    Returns
    -------
    PredictedLines
        What was written.

    Raises
    ------
    InputError
        The file cannot be read, has no line, an empty source or one with something that is not in the vocabulary, the
        tokenizers are none of this model, or that is no encoder-decoder.
    StorageError
        `output` cannot be written.
    """
    texts = list(_sources(path))
    if not texts:
        raise InputError("no line to predict from", where=path, expected="a source in each line")
    with amended(f"{path}: "):
        ids = [np.array([*source.encode(text, number), source.eos], np.int64) for number, text in texts]
    parts = halves(trainer.model, trainer.replica.input_shape)
    embedding = next(layer for layer in walk(parts.encoder) if isinstance(layer, Embedding))
    require_room(source, embedding.num_embeddings, "embeddings")
    with trainer.replica.averaged():
        found = translations(parts, ids, target, beams=beams, length_penalty=length_penalty)
    answers = (target.decode(tokens).translate(_ESCAPES) for tokens in found)
    written = "".join(f"{text}\t{answer}\n" for (_, text), answer in zip(texts, answers, strict=True))
    write_file(output, written.encode())
    lost = [number for (number, _), tokens in zip(texts, ids, strict=True) if (tokens == source.unk).any()]
    return PredictedLines(len(texts), len(lost), lost[0] if lost else None)


def translations(
    parts: Halves, sources: list[np.ndarray], target: Tokenizer, *, beams: int | None, length_penalty: float
) -> list[np.ndarray]:
    """Return the tokens that a model makes of sources, int64 (length,) each, in their order, without bos and eos.

    A target is at most as long as the longest of training, rounded up as batches are; see `data.pair_batch`.

    Parameters
    ----------
    parts : Halves
    sources : list of int64 array, shape (length,)
    target : Tokenizer
        With bos and eos.
    beams : int, optional
    length_penalty : float
    """
    capacity = int(parts.target_shape[0][0])  # type: ignore[index]
    outputs = parts.decoder.output_shape(parts.target_shape)[-1]
    found: list[np.ndarray] = [np.zeros(0, np.int64)] * len(sources)
    order = sorted(range(len(sources)), key=lambda number: len(sources[number]))
    size = 1 if beams else _BATCH
    for start in range(0, len(order), size):
        numbers = order[start : start + size]
        padded = np.full((len(numbers), len(sources[numbers[-1]])), PAD, np.int64)
        for row, number in zip(padded, numbers, strict=True):
            row[: len(sources[number])] = sources[number]
        step, begin = within(decoder_of(parts, padded, capacity), outputs, target), np.array([target.bos])
        if beams:
            rows = [
                beam_search(
                    step, begin, beams=beams, max_tokens=capacity, end=target.eos, length_penalty=length_penalty
                )[0].tokens
            ]
        else:
            steps = generate(step, [begin] * len(numbers), greedy, max_tokens=capacity, end=target.eos)
            rows = list(np.array(list(steps)).T)
        for number, row in zip(numbers, rows, strict=True):
            found[number] = row[(row >= 0) & (row != target.eos)]
    return found


def _sources(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number, text) of the sources in a file."""
    for number, line in lines(path):
        text = line.split("\t")[0]
        if not text.strip():
            raise InputError("an empty source", where=f"{path}: line {number}", remedy="remove the line")
        yield number, text
