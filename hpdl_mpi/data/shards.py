"""Files of a dataset on disk: their names, finding them, and reading what they say about themselves."""

from __future__ import annotations

import glob
import math
import os
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from hpdl_mpi.base.errors import InputError

SUFFIXES = (".h5", ".hdf5")
FORMAT = "hpdl_mpi dataset 1"
"""Attribute ``format`` of our own files; the number rises when old readers could misread new files."""

INDEX_ATTRIBUTE = "shard_index"
COUNT_ATTRIBUTE = "num_shards"
MAX_OPEN_FILES = 64
TARGET_BLOCK_BYTES = 256 * 1024
"""Blocks of unchunked data have about this size, and smaller chunks are read several at a time."""

_SHARD_NAME = re.compile(r"-(\d+)-of-(\d+)\.(?:h5|hdf5)$")
_VERIFY = "run `hpdl data verify` on the dataset, then copy or convert the damaged file again"


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
        Nothing is there, or shards of a folder are missing by their own names.
    """
    folder = Path(path).expanduser()
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
        remedy = "give a folder of shards, a glob or one .h5 file; `hpdl data convert` makes one from IDX, NPZ or CSV"
        raise InputError(what, where=path, remedy=remedy)
    return files


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


@dataclass(frozen=True)
class ShardArray:
    """What one file says about one of its arrays.

    Attributes
    ----------
    count : int
        Samples: the first dimension.
    shape : tuple of int
        Of one sample.
    dtype : numpy dtype
        In memory: native byte order, float16 widened to float32.
    block_length : int
        Samples that are read together.
    """

    count: int
    shape: tuple[int, ...]
    dtype: np.dtype
    block_length: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample in memory."""
        return math.prod(self.shape) * self.dtype.itemsize


class ShardFiles:
    """Opens HDF5 files on demand, read-only, at most `MAX_OPEN_FILES` at a time. Not thread-safe."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self._open: OrderedDict[int, h5py.File] = OrderedDict()

    def __getitem__(self, shard: int) -> h5py.File:
        """Return the open file of a shard, valid until the next call; raise InputError if it cannot be read."""
        if shard not in self._open:
            if len(self._open) >= MAX_OPEN_FILES:
                self._open.popitem(last=False)[1].close()
            self._open[shard] = open_shard(self.paths[shard])
        self._open.move_to_end(shard)
        return self._open[shard]

    def close(self) -> None:
        """Close every file; a later access opens it again."""
        while self._open:
            self._open.popitem()[1].close()


def open_shard(path: Path) -> h5py.File:
    """Open one file read-only, without file locks (parallel file systems often have none) and HDF5's chunk cache.

    Raises
    ------
    InputError
        It cannot be opened, is truncated, or is not HDF5.
    """
    try:
        return h5py.File(path, "r", locking=False, rdcc_nbytes=0)
    except OSError as error:
        raise InputError("cannot be read as HDF5", where=path, found=hdf5_reason(error), remedy=_VERIFY) from error


def hdf5_reason(error: Exception) -> str:
    """Return the part of an HDF5 message that tells people something."""
    match = re.search(r"\((.*)\)\s*$", str(error), re.DOTALL)
    return match[1] if match else str(error)


def describe(file: h5py.File, path: Path, name: str) -> ShardArray:
    """Read the shape and type of one array; reads no samples.

    Raises
    ------
    InputError
        No such array, not an array, empty, not numbers, not all written, or stored outside this file.
    """
    dataset = find_array(file, path, name)
    where = f"{path}: {name}"
    if dataset.ndim == 0 or dataset.size == 0:
        raise InputError("no samples", where=where, found=f"shape {dataset.shape}", expected="at least one sample")
    if dataset.dtype.kind not in "biuf" or dataset.dtype.itemsize > 8:
        raise InputError("cannot train on this type", where=where, found=dataset.dtype, expected="integers or floats")
    if dataset.external or dataset.is_virtual or dataset.file.filename != file.filename:
        raise InputError(
            "is stored in other files",
            where=where,
            remedy="name those files with a glob, or copy the array into one file",
        )
    if _has_gaps(dataset):
        remedy = "write the file again: whatever wrote it did not finish"
        raise InputError("samples are absent: HDF5 would read them as zeros", where=where, remedy=remedy)
    dtype = np.dtype(np.float32) if dataset.dtype == np.float16 else dataset.dtype
    return ShardArray(dataset.shape[0], dataset.shape[1:], dtype.newbyteorder("="), block_length(dataset))


def _has_gaps(dataset: h5py.Dataset) -> bool:
    """Tell whether part of an array was never written; looks at the index of chunks, 0.2 microseconds each."""
    if dataset.chunks is None:
        return dataset.id.get_storage_size() < dataset.nbytes
    grid = (-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True))
    return dataset.id.get_num_chunks() < math.prod(grid)


def find_array(file: h5py.File, path: Path, name: str) -> h5py.Dataset:
    """Return the array `name` of a file, or raise an InputError that lists the arrays that are there."""
    try:
        found = file.get(name)
    except (OSError, RuntimeError, KeyError) as error:
        raise InputError("damaged", where=f"{path}: {name}", found=hdf5_reason(error), remedy=_VERIFY) from error
    if not isinstance(found, h5py.Dataset):
        raise InputError(
            f"no array {name!r}",
            where=path,
            found=", ".join(array_names(file)) or "no arrays",
            remedy="set data.inputs and data.targets to the names of arrays in the file",
        )
    return found


def array_names(file: h5py.File) -> list[str]:
    """Return the paths of all arrays in a file, in the order of their names."""
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return names


def block_length(dataset: h5py.Dataset) -> int:
    """Return how many samples to read together: whole chunks, so that none is decompressed twice.

    Small chunks are taken several at a time and unfiltered data in any length, about `TARGET_BLOCK_BYTES` each.
    """
    count = dataset.shape[0]
    row_bytes = max(1, dataset.nbytes // count)
    chunk = dataset.chunks[0] if dataset.chunks else 1
    filtered = dataset.chunks and dataset.id.get_create_plist().get_nfilters() > 0
    wanted = max(1, TARGET_BLOCK_BYTES // row_bytes)
    if chunk > wanted:
        return min(count, chunk if filtered else wanted)
    return min(count, wanted // chunk * chunk)


def is_ours(file: h5py.File, path: Path) -> bool:
    """Tell whether this package wrote a file; raise InputError if it was a version that this one cannot read."""
    stated = str(file.attrs.get("format", ""))
    if stated != FORMAT and stated.startswith(FORMAT.rpartition(" ")[0]):
        raise InputError("unknown version of the format", where=path, found=stated, expected=FORMAT, remedy="upgrade")
    return stated == FORMAT


def stated_place(file: h5py.File, path: Path) -> tuple[int, int] | None:
    """Return (index, count) of a shard from its own attributes, or None for a file that somebody else made."""
    if not is_ours(file, path):
        return None
    return int(file.attrs[INDEX_ATTRIBUTE]), int(file.attrs[COUNT_ATTRIBUTE])
