"""Pairs of texts: lines of source TAB target become two arrays of padded tokens and their lengths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpdl_mpi.base.errors import InputError, amended
from hpdl_mpi.base.memory import check_memory
from hpdl_mpi.data.convert.class_folders import Skipped
from hpdl_mpi.data.convert.files import Files
from hpdl_mpi.data.convert.text_files import lines, text_paths
from hpdl_mpi.data.pairs import SOURCE, TARGET, length_name
from hpdl_mpi.data.text import Tokenizer
from hpdl_mpi.data.text.learn import WantedTokenizer
from hpdl_mpi.data.writer import Split
from hpdl_mpi.kernels.random import derive_key


def specials(kind: str | None) -> tuple[str, ...]:
    """Return the specials of a tokenizer of one side; bytes need no `unk`."""
    return ("pad", "bos", "eos") if kind in (None, "bpe") else ("pad", "bos", "eos", "unk")


@dataclass(frozen=True)
class Pair:
    """One line: where it stands, and its two sides."""

    path: Path
    line: int
    source: str
    target: str


def read_splits(
    files: Files, source: WantedTokenizer, target: WantedTokenizer, *, test_fraction: float, seed: int, skip_bad: bool
) -> tuple[dict[str, Split], dict[str, Tokenizer], Skipped]:
    """Read files of pairs into memory; tokenizers are learnt on the training split.

    Parameters
    ----------
    files : Files
    source, target : WantedTokenizer
        Of the tokenizer of each side.
    test_fraction : float
        The probability of a source to be in the test split, with all its targets: no source is in both.
    seed : int
        Of these draws, each of which depends on the source alone.
    skip_bad : bool
        Leave out lines that are no pairs, and list them.

    Returns
    -------
    splits : dict of str to Split
        "train", and "test" if `test_fraction` is above zero, in the order of the lines: ``source`` (n, S), which ends
        in eos, ``target`` (n, T), which begins with bos and ends in eos, both padded with 0, and their lengths
        ``source_length`` and ``target_length``, int32 (n,).
    tokenizers : dict of str to Tokenizer
        Of "source" and "target".
    skipped : list of (str, str)
        Places and reasons.

    Raises
    ------
    InputError
        A line is no pair, a split would be empty, something is not in a vocabulary that is given, or rows as wide as
        the longest do not fit in memory.
    """
    pairs, skipped = _read(files, skip_bad)
    parts = _parts(pairs, test_fraction, seed, files.origin)
    tokenizers = {
        SOURCE: source.make(lambda cut: (pair.source for pair in parts["train"])),
        TARGET: target.make(lambda cut: (pair.target for pair in parts["train"])),
    }
    return {name: _encoded(part, tokenizers) for name, part in parts.items()}, tokenizers, skipped


def _read(files: Files, skip_bad: bool) -> tuple[list[Pair], Skipped]:
    pairs: list[Pair] = []
    skipped: Skipped = []
    for path in text_paths(files):
        for number, line in lines(path):
            sides = line.split("\t")
            if len(sides) == 2 and all(side.strip() for side in sides):
                pairs.append(Pair(path, number, *sides))
                continue
            reason = "an empty line" if not line.strip() else "an empty side" if len(sides) == 2 else "not two sides"
            if not skip_bad:
                raise InputError(
                    f"{reason}",
                    where=f"{path}: line {number}",
                    found=repr(line[:80]),
                    expected="source, one TAB, target",
                    remedy="mend the line, or leave out all such with --skip-bad",
                )
            skipped.append((f"{path}: line {number}", reason))
    if not pairs:
        raise InputError("no pairs", where=files.origin, found=f"{len(skipped)} other lines")
    return pairs, skipped


def _parts(pairs: list[Pair], test_fraction: float, seed: int, where: Path) -> dict[str, list[Pair]]:
    """Return the pairs of each split."""
    if test_fraction == 0:
        return {"train": pairs}
    sources = {pair.source for pair in pairs}
    tests = {text for text in sources if int(derive_key("test split", seed, text)) < test_fraction * 2**64}
    if not 0 < len(tests) < len(sources):
        raise InputError(
            "a split would be empty",
            where=where,
            found=f"{len(tests)} of {len(sources)} sources for test",
            expected="one at least for training and one for test",
            remedy="choose another --test-fraction or --seed",
        )
    return {
        "train": [pair for pair in pairs if pair.source not in tests],
        "test": [pair for pair in pairs if pair.source in tests],
    }


def _encoded(pairs: list[Pair], tokenizers: dict[str, Tokenizer]) -> Split:
    arrays: dict[str, np.ndarray] = {}
    sides: dict[str, Callable[[Pair], str]] = {SOURCE: lambda pair: pair.source, TARGET: lambda pair: pair.target}
    for name, text in sides.items():
        tokenizer = tokenizers[name]
        begin = [tokenizer.bos] if name == TARGET else []
        rows = [_ids(tokenizer, pair, text(pair)) for pair in pairs]
        lengths = np.array([len(begin) + len(row) + 1 for row in rows], np.int32)
        width, longest = int(lengths.max()), pairs[int(lengths.argmax())]
        with amended(f"{longest.path}: line {longest.line}: "):
            what = f"{len(rows)} rows of {name!r} that are as wide as this one"
            remedy = "cut the longest lines, or convert the source in parts"
            check_memory(len(rows) * width * tokenizer.dtype.itemsize, what, remedy=remedy)
        arrays[name] = np.zeros((len(rows), width), tokenizer.dtype)
        for padded, row, length in zip(arrays[name], rows, lengths, strict=True):
            padded[:length] = [*begin, *row, tokenizer.eos]
        arrays[length_name(name)] = lengths
    return Split(arrays)


def _ids(tokenizer: Tokenizer, pair: Pair, text: str) -> np.ndarray:
    """Return the ids of one side in their smallest type, which takes no more memory than the text."""
    with amended(f"{pair.path}: "):
        return tokenizer.encode(text, pair.line).astype(tokenizer.dtype)
