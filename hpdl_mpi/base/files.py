"""Files that are whole or absent: write aside, fsync, rename."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hpdl_mpi.base.errors import InputError, StorageError


def fsync(path: Path) -> None:
    """Force a file, or the names in a folder, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old content or the new, never a part.

    Raises
    ------
    OSError
        The folder cannot be written or is full; `path` is as it was before, and nothing is left beside it.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    fsync(path.parent)


def write_file(path: Path, data: bytes) -> None:
    """Write a file for the user, whole or not at all; of a link, the file that it leads to.

    Raises
    ------
    StorageError
        The disk is full or the folder cannot be written.
    """
    try:
        write_whole(Path(os.path.realpath(path)), data)
    except OSError as error:
        raise StorageError("the file could not be written", where=path, found=error.strerror) from error


def check_destination(path: Path) -> None:
    """Raise an `InputError` if no file can be written there: found out before long work, not after.

    A device or a pipe is none, by whatever name: what is renamed to its place would end it.
    """
    folder = Path(os.path.realpath(path)).parent
    if (path.exists() and not path.is_file()) or not os.access(folder, os.W_OK):
        raise InputError("cannot be written", where=path, expected="a file in a folder that exists and can be written")


def write_json(path: Path, value: Any) -> None:
    """Write a file of JSON as people read it; raises what `write_file` does."""
    write_file(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())
