"""Files of text, read piece by piece as UTF-8."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from pathlib import Path

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data.convert.files import Files, reading

PIECE_BYTES = 2**20
"""Bytes that are read and decoded at once."""

MAX_LINE = 2**20
"""Characters of a line of pairs."""


def recognises(names: list[str], suffix: str) -> bool:
    """Tell whether all files of these names, one at least, have a suffix such as ".txt"."""
    return bool(names) and all(name.lower().endswith(suffix) for name in names)


def text_paths(files: Files) -> list[Path]:
    """Return the paths of files of text, in the order of their names.

    Raises
    ------
    InputError
        A file is empty, or they are in an archive.
    """
    if files.packed is not None:
        raise InputError("text in an archive", where=files.source, remedy="unpack it, and name the folder")
    paths = [files.source / name for name in files.names]
    for path in paths:
        with reading(path):
            if not path.stat().st_size:
                raise InputError("an empty file", where=path, expected="text", remedy="remove it, or name another one")
    return paths


def pieces(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line at which it begins, text) of the pieces of a file; a mark of the byte order in front is left out.

    Raises
    ------
    InputError
        The file cannot be read, or a byte is no UTF-8; names its line and its place.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    with reading(path), open(path, "rb") as file:
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        while True:
            start = file.tell() - len(decoder.getstate()[0])
            data = file.read(PIECE_BYTES)
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise InputError(
                    "no text in UTF-8",
                    where=f"{path}: line {line + error.object.count(10, 0, error.start)}",
                    found=f"byte 0x{error.object[error.start]:02x} at place {start + error.start}, {error.reason}",
                    remedy="save the file as UTF-8",
                ) from error
            if not data:
                break
            yield line, text
            line += text.count("\n")


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number, text) of the lines of a file, without what ends them.

    Raises
    ------
    InputError
        What `pieces` raises, or a line is longer than `MAX_LINE`.
    """
    held, number = "", 0
    for _, text in pieces(path):
        *whole, held = (held + text).split("\n")
        for line in whole:
            number += 1
            yield number, line.removesuffix("\r")
        if len(held) > MAX_LINE:
            raise InputError(
                "a line without an end", where=f"{path}: line {number + 1}", expected=f"{MAX_LINE} at most"
            )
    if held:
        yield number + 1, held.removesuffix("\r")


def excerpt(paths: list[Path], start: int, stop: int, cut: Callable[[str], int]) -> Iterator[tuple[Path, int, str]]:
    """Yield (file, line, text) of the pieces of characters `start` to `stop` of some files, one after the other.

    Pieces end where `cut` says that a text can be cut, see `Tokenizer.cut`, or with a file or at `stop`.
    """
    place = 0
    for path in paths:
        held, first = "", 1
        for line, text in pieces(path):
            begin, end = max(0, start - place), min(len(text), stop - place)
            place += len(text)
            if begin >= end:
                continue
            if not held:
                first = line + text.count("\n", 0, begin)
            held += text[begin:end]
            if size := cut(held):
                yield path, first, held[:size]
                first += held.count("\n", 0, size)
                held = held[size:]
        if held:
            yield path, first, held
