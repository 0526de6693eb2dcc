"""What one HDF5 file holds and says about itself; every way in which it can be damaged becomes an `InputError`."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from hpdl_mpi.base.errors import HpdlError, InputError

FORMAT = "hpdl_mpi dataset 1"
"""Attribute ``format`` of our own files; the number rises when old readers could misread new files."""

INDEX_ATTRIBUTE = "shard_index"
COUNT_ATTRIBUTE = "num_shards"
MAX_OPEN_FILES = 64
TARGET_BLOCK_BYTES = 256 * 1024
"""Blocks of unchunked data have about this size, and smaller chunks are read several at a time."""


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


@contextmanager
def reading(
    where: object,
    what: str = "cannot be read as HDF5",
    remedy: str = "run `hpdl data verify` on the dataset, then copy or convert the damaged file again",
) -> Iterator[None]:
    """Turn what h5py raises on a damaged file, which is almost anything, into an InputError."""
    try:
        yield
    except HpdlError:
        raise
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        match = re.search(r"\((.*)\)\W*$", str(error), re.DOTALL)  # HDF5's own reason stands in brackets
        raise InputError(what, where=where, found=match[1] if match else error, remedy=remedy) from error


def open_shard(path: Path) -> h5py.File:
    """Open one file read-only, without file locks (parallel file systems often have none) and HDF5's chunk cache.

    Raises
    ------
    InputError
        It cannot be opened, is truncated, or is not HDF5.
    """
    with reading(path):
        return h5py.File(path, "r", locking=False, rdcc_nbytes=0)


def describe(file: h5py.File, path: Path, name: str) -> ShardArray:
    """Read the shape and type of one array; reads no samples.

    Raises
    ------
    InputError
        No such array, not an array, empty, not numbers, not all written, stored outside this file, or damaged.
    """
    where = f"{path}: {name}"
    dataset = find_array(file, path, name)
    with reading(where):
        _check_array(file, dataset, where)
        return ShardArray(dataset.shape[0], dataset.shape[1:], memory_dtype(dataset.dtype), block_length(dataset))


def memory_dtype(dtype: np.dtype) -> np.dtype:
    """Return the type that stored numbers have in memory: of native byte order, float16 widened to float32."""
    return np.dtype(np.float32) if dtype == np.float16 else dtype.newbyteorder("=")


def _check_array(file: h5py.File, dataset: h5py.Dataset, where: str) -> None:
    if dataset.ndim == 0 or dataset.size == 0:
        raise InputError("no samples", where=where, found=f"shape {dataset.shape}", expected="at least one sample")
    if dataset.dtype.kind not in "biuf" or dataset.dtype.itemsize > 8:
        raise InputError("cannot train on this type", where=where, found=dataset.dtype, expected="integers or floats")
    if lies_elsewhere(file, dataset):
        remedy = "name those files with a glob, or copy the array into one file"
        raise InputError("is stored in other files", where=where, remedy=remedy)
    if _has_gaps(dataset):
        remedy = "write the file again: whatever wrote it did not finish"
        raise InputError("samples are absent, and HDF5 would read them as zeros", where=where, remedy=remedy)


def lies_elsewhere(file: h5py.File, dataset: h5py.Dataset) -> bool:
    """Tell whether an array that was found through `file` is stored, in part or whole, in other files."""
    return bool(dataset.external) or dataset.is_virtual or dataset.file.filename != file.filename


def _has_gaps(dataset: h5py.Dataset) -> bool:
    """Tell whether part of an array was never written; looks at the index of chunks, 0.2 microseconds each."""
    if dataset.chunks is None:
        return dataset.id.get_storage_size() < dataset.nbytes
    grid = (-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True))
    return dataset.id.get_num_chunks() < math.prod(grid)


def find_array(file: h5py.File, path: Path, name: str) -> h5py.Dataset:
    """Return the array `name` of a file, or raise an InputError that lists the arrays that are there."""
    with reading(f"{path}: {name}"):
        found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        raise no_such_array(path, name, array_names(file, path))
    return found


def no_such_array(path: Path, name: str, present: Iterable[str]) -> InputError:
    """Return the error of a file that lacks an array, wherever the user has named it."""
    return InputError(
        f"no array {name!r}",
        where=path,
        found=", ".join(present) or "no arrays",
        remedy="name one that is there: in a job with data.inputs and data.targets, on the command line with --inputs "
        "and --targets, or --array",
    )


def array_names(file: h5py.File, path: Path) -> list[str]:
    """Return the paths of all arrays in a file, in the order of their names; raise InputError if it is damaged."""
    names: list[str] = []
    with reading(path):
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
    stated = text_attribute(file, "format")
    if stated and stated != [FORMAT] and stated[0].startswith(FORMAT.rpartition(" ")[0]):
        raise InputError(
            "unknown version of the format", where=path, found=stated[0], expected=FORMAT, remedy="upgrade"
        )
    return stated == [FORMAT]


def stated_place(file: h5py.File, path: Path) -> tuple[int, int] | None:
    """Return (index, count) of a shard from its own attributes, or None for a file that somebody else made."""
    if not is_ours(file, path):
        return None
    with reading(path):
        return int(file.attrs[INDEX_ATTRIBUTE]), int(file.attrs[COUNT_ATTRIBUTE])


def text_attribute(item: h5py.HLObject, name: str) -> list[str]:
    """Return the texts of an attribute of fixed-length strings, the only kind we write; empty if there is none.

    Strings of variable length lie in a heap of the file, and HDF5 may loop for ever in a damaged one.
    """
    with reading(f"{item.file.filename}: attribute {name!r}"):
        if name not in item.attrs or item.attrs.get_id(name).dtype.kind != "S":
            return []
        return [text.decode() for text in np.atleast_1d(item.attrs[name]).tolist()]


def fixed_text(texts: str | list[str]) -> np.ndarray:
    """Return texts as an HDF5 attribute of fixed-length strings in UTF-8, for `text_attribute`."""
    return np.char.encode(texts, "utf-8")
