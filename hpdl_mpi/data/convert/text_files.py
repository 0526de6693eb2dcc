"""Files of text, read piece by piece as UTF-8."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from pathlib import Path

from hpdl_mpi.base.errors import InputError, amended
from hpdl_mpi.data.convert.files import Files, reading

PIECE_BYTES = 2**20
"""Bytes that are read and decoded at once."""

MAX_LINE = 2**20
"""Characters of a line of pairs."""

MAX_HELD = 2**22
"""Characters of running text that wait for a place to cut: to encode each, the library tokenizers takes 300 bytes."""


def recognises(names: list[str], *suffixes: str) -> bool:
    """Tell whether all files of these names, one at least, have one of some suffixes such as ".txt"."""
    return bool(names) and all(name.lower().endswith(suffixes) for name in names)


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
    held, number = "", 1
    for _, text in pieces(path):
        *whole, held = (held + text).split("\n")
        for line in whole:
            _require_short(line, path, number)
            yield number, line.removesuffix("\r")
            number += 1
        _require_short(held, path, number)
    if held:
        yield number, held.removesuffix("\r")


def _require_short(line: str, path: Path, number: int) -> None:
    """Raise if a line, or what has been read of it, is longer than `MAX_LINE`."""
    if len(line) > MAX_LINE:
        raise InputError(
            "a line that is too long",
            where=f"{path}: line {number}",
            found=f"{len(line)} characters or more",
            expected=f"{MAX_LINE} at most",
            remedy="cut the line in shorter ones, or take it out",
        )


def excerpt(paths: list[Path], start: int, stop: int, cut: Callable[[str], int]) -> Iterator[tuple[Path, int, str]]:
    """Yield (file, line, text) of the pieces of characters `start` to `stop` of some files, one after the other.

    Pieces end where `cut` says that a text can be cut, see `Tokenizer.cut`, or with a file or at `stop`.

    Raises
    ------
    InputError
        What `pieces` raises, or there is no place to cut in more than `MAX_HELD` characters.
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
            with amended(f"{path}: "):
                size = cut(held)
            if size:
                yield path, first, held[:size]
                first += held.count("\n", 0, size)
                held = held[size:]
            if len(held) > MAX_HELD:
                raise InputError(
                    "text without a place to cut it",
                    where=f"{path}: line {first}",
                    found=f"{len(held)} characters in which no token is sure to end",
                    expected=f"{MAX_HELD} at most",
                    remedy="put blanks or ends of lines between words, make several files of it, or take --tokens "
                    "characters",
                )
        if held:
            yield path, first, held
