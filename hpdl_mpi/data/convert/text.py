"""Running text: files of text become one flat array of tokens, the last part of it the test split."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hpdl_mpi.base.errors import InputError, amended
from hpdl_mpi.data.convert.files import Files
from hpdl_mpi.data.convert.text_files import excerpt, pieces, text_paths
from hpdl_mpi.data.text import Tokenizer
from hpdl_mpi.data.text.learn import WantedTokenizer
from hpdl_mpi.data.windows import TOKENS
from hpdl_mpi.data.writer import Split, writing

CHUNK_TOKENS = 2**16
"""Tokens of a chunk: many windows, and still read in a moment."""


def specials(kind: str | None, *, masked: bool) -> tuple[str, ...]:
    """Return the specials of a tokenizer: words need `unk`, what is masked a mask, and 0 to be no text, as for BERT."""
    return ("pad",) * masked + ("unk",) * (kind == "words") + ("mask",) * masked


def read_splits(
    files: Files, wanted: WantedTokenizer, test_fraction: float, scratch: Path
) -> tuple[dict[str, Split], Tokenizer]:
    """Read files of text in the order of their names, as one text of which only a part is in memory, see `excerpt`.

    Parameters
    ----------
    files : Files
    wanted : WantedTokenizer
        Of the tokenizer. Characters are learnt on all of the text, words and pairs of bytes on the training split.
    test_fraction : float
        Part of the characters, the last ones, that is the test split.
    scratch : Path
        The file where the tokens are kept while they are written; the caller removes it.

    Returns
    -------
    splits : dict of str to Split
        "train", and "test" if `test_fraction` is above zero: ``tokens`` of the smallest type that fits, (n,).
    tokenizer : Tokenizer
        Learnt, or that of the file.

    Raises
    ------
    InputError
        A file is empty or no text, has no place to cut it in too many characters, a part has less than two tokens, or
        a character is not in the vocabulary.
    StorageError
        There is no room for the tokens.
    """
    paths = text_paths(files)
    length = sum(len(text) for path in paths for _, text in pieces(path))
    end = length if test_fraction == 0 else int(length * (1 - test_fraction))
    known = length if wanted.kind == "characters" else end

    def texts(cut: Callable[[str], int]) -> Iterable[str]:
        return (text for _, _, text in excerpt(paths, 0, known, cut))

    tokenizer = wanted.make(texts)
    parts = {"train": (0, end)} | ({"test": (end, length)} if test_fraction else {})
    with writing(scratch):
        scratch.parent.mkdir(parents=True, exist_ok=True)
    with writing(scratch), open(scratch, "wb") as file:
        counts = {name: _write_tokens(paths, *part, tokenizer, file) for name, part in parts.items()}
    splits, first = {}, 0
    for name, count in counts.items():
        if count < 2:
            raise InputError(
                f"too little text for the split {name!r}",
                where=files.origin,
                found=f"{count} tokens",
                expected="2 at least: one to read, and one that follows",
                remedy="give more text, or another --test-fraction",
            )
        place = first * tokenizer.dtype.itemsize
        tokens = np.memmap(scratch, tokenizer.dtype, "r", place, (count,))
        splits[name] = Split({TOKENS: tokens}, max_chunk=CHUNK_TOKENS)
        first += count
    return splits, tokenizer


def _write_tokens(paths: list[Path], start: int, stop: int, tokenizer: Tokenizer, file: BinaryIO) -> int:
    """Write the tokens of characters `start` to `stop` and return their number."""
    count = 0
    for path, line, text in excerpt(paths, start, stop, tokenizer.cut):
        with amended(f"{path}: "):
            ids = tokenizer.encode(text, line)
        file.write(ids.astype(tokenizer.dtype).tobytes())
        count += ids.size
    return count
