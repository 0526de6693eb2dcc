"""The files of a dataset: their names, and finding them all."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from hpdl_mpi.base.errors import InputError

SUFFIXES = (".h5", ".hdf5")
_SHARD_NAME = re.compile(r"-(\d+)-of-(\d+)\.(?:h5|hdf5)$")


def shard_name(split: str, index: int, count: int) -> str:
    """Return the file name of one shard, such as ``train-00000-of-00004.h5``."""
    return f"{split}-{index:05d}-of-{count:05d}.h5"


def find_shards(path: str | os.PathLike[str]) -> list[Path]:
    """Return the files of a dataset in natural order (``part-2`` before ``part-10``).

    Parameters
    ----------
    path : path-like
        A folder of ``*.h5`` and ``*.hdf5`` files, a glob pattern, or one file of any name.

    Raises
    ------
    InputError
        Nothing is there, the path is empty, or shards of a folder are missing by their own names.
    """
    folder = expanded(path)
    if folder.is_dir():
        files = [f for f in folder.iterdir() if f.suffix in SUFFIXES and not f.name.startswith(".") and f.is_file()]
        files.sort(key=natural_key)
        refuse_missing(folder, [named_place(file) for file in files])
    elif folder.exists():
        files = [folder]
    else:
        files = sorted(map(Path, glob.glob(str(folder))), key=natural_key)
    if not files:
        what = "no .h5 or .hdf5 file in the folder" if folder.is_dir() else "no such file, folder or match of a pattern"
        seen_from = None if folder.is_absolute() else f"a path that counts from {Path.cwd()}"
        remedy = "give a folder of shards, a glob or one .h5 file; `hpdl data convert` makes one from other formats"
        inner = sorted({file.parent.name for suffix in SUFFIXES for file in folder.glob(f"*/*{suffix}")})
        if inner:
            remedy = f"name one of the folders in it: {', '.join(inner[:9])}"
        raise InputError(what, where=path, found=seen_from, remedy=remedy)
    return files


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return the path of a dataset with ``~`` replaced by the home folder; raise InputError if it is empty."""
    if not os.fspath(path):
        raise InputError("no data are named", found="an empty path", expected="a folder of shards, a glob or a file")
    return Path(os.path.expanduser(path))


def natural_key(path: Path) -> list[tuple[int, str]]:
    """Return a sorting key that compares runs of digits as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def named_place(path: Path) -> tuple[int, int] | None:
    """Return (index, count) of a shard from its name, or None for another kind of name."""
    match = _SHARD_NAME.search(path.name)
    return (int(match[1]), int(match[2])) if match else None


def refuse_missing(folder: Path, places: Sequence[tuple[int, int] | None]) -> None:
    """Raise if the (index, count) of the shards of one folder, where they state them, are not 0..count-1, each once."""
    stated = [place for place in places if place is not None]
    if not stated:
        return
    counts = {count for _, count in stated}
    if len(counts) > 1 or len(stated) != len(places):
        raise InputError(
            "shards of different datasets in one folder",
            where=folder,
            found=f"shards of sets of {', '.join(map(str, sorted(counts)))}, {len(places)} files",
            remedy="keep one dataset per folder, or name the files with a glob",
        )
    expected = range(counts.pop())
    present = sorted(index for index, _ in stated)
    if present != list(expected):
        missing = [index for index in expected if index not in present]
        raise InputError(
            "shards are missing" if missing else "shards are there twice",
            where=folder,
            found=f"numbers {', '.join(map(str, present))}",
            expected=f"0 to {expected[-1]}, each once" if expected else "a set of at least 1",
            remedy="copy the missing files, convert the dataset again, or name the files to use with a glob",
        )
