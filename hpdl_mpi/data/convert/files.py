"""The files of a source, and where the bytes of each lie: in a folder, or one after another in an archive."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hpdl_mpi.base.errors import InputError


@contextmanager
def reading(place: object) -> Iterator[None]:
    """Turn what the system says about a file that is read into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError("cannot be read", where=place, found=error.strerror or error) from error


@dataclass(frozen=True)
class Files:
    """Files by name. What cannot be seen (hidden files, a Mac's shadows) is left out.

    Attributes
    ----------
    source : Path
        The folder or archive that they come from.
    names : list of str
        Sorted, with "/" between folders.
    folders : list of str
        Names of folders, which may hold no file.
    packed : Path, optional
        The file that holds all of them; None where each is a file of its own in `source`.
    extents : int64 (n, 2), optional
        First byte in `packed` and number of bytes.
    """

    source: Path
    names: list[str]
    folders: list[str]
    packed: Path | None = None
    extents: np.ndarray | None = None

    @property
    def origin(self) -> Path:
        """What all of them come from, for people: the folder or archive, or the file itself if it is the only one."""
        return self.source / self.names[0] if len(self.names) == 1 and self.packed is None else self.source

    def place(self, index: int) -> str:
        """Return where a file stands, for people."""
        return f"{self.source}/{self.names[index]}"

    def extent(self, index: int) -> tuple[Path, int, int]:
        """Return (path, first byte, number of bytes) of a file."""
        if self.packed is None or self.extents is None:
            path = self.source / self.names[index]
            return path, 0, path.stat().st_size
        return self.packed, *self.extents[index].tolist()

    def open(self, index: int) -> BinaryIO:
        """Open a file for reading; the caller closes it."""
        if self.packed is None:
            return open(self.source / self.names[index], "rb")
        path, start, size = self.extent(index)
        with open(path, "rb") as file:
            file.seek(start)
            return io.BytesIO(file.read(size))


def is_hidden(parts: Sequence[str]) -> bool:
    """Tell whether a name, cut at "/", is of a file that people do not see."""
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def list_files(paths: Sequence[Path]) -> Files:
    """Return some files as those of the folder that they have in common; raise an InputError if one is not there."""
    for path in paths:
        if not path.is_file():
            raise InputError("no such file", where=path, remedy="name one folder, or files alone")
    whole = [path.absolute() for path in paths]
    folder = Path(os.path.commonpath([path.parent for path in whole]))
    return Files(folder, sorted(path.relative_to(folder).as_posix() for path in whole), [])


def list_folder(source: Path) -> Files:
    """List all files in a folder and the folders in it, through links as well.

    Raises
    ------
    InputError
        A folder cannot be read or leads back to itself, or something is neither a file nor a folder.
    """
    names: list[str] = []
    folders: list[str] = []
    seen: set[tuple[int, int]] = set()
    pending = [""]
    try:
        while pending:
            prefix = pending.pop()
            status = os.stat(source / prefix)
            if (status.st_dev, status.st_ino) in seen:
                raise InputError("the same folder is there twice", where=source / prefix, remedy="remove the link")
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(source / prefix) as entries:
                for entry in entries:
                    if is_hidden([entry.name]):
                        continue
                    if entry.is_dir():
                        folders.append(prefix + entry.name)
                        pending.append(f"{prefix}{entry.name}/")
                    elif entry.is_file():
                        names.append(prefix + entry.name)
                    else:
                        remedy = "remove it, or mend the link"
                        raise InputError("neither a file nor a folder", where=entry.path, remedy=remedy)
    except OSError as error:
        raise InputError("cannot be read", where=error.filename or source, found=error.strerror) from error
    return Files(source, sorted(names), sorted(folders))
