"""Writes a dataset: one folder per split, shards that check themselves, all or nothing."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from hpdl_mpi.base.agree import Alone, Group, agree, agree_all
from hpdl_mpi.base.errors import InputError, StorageError
from hpdl_mpi.base.files import fsync, write_whole
from hpdl_mpi.base.shares import share
from hpdl_mpi.data.hdf5 import COUNT_ATTRIBUTE, FORMAT, INDEX_ATTRIBUTE, TARGET_BLOCK_BYTES, fixed_text
from hpdl_mpi.data.shards import shard_name

LIBVER = ("v110", "v110")
"""HDF5 1.10, of 2016: since then all metadata carry checksums, and attributes may be longer than 64 KiB."""

MAX_CHUNK_SAMPLES = 4096
SHARD_BYTES = 256 * 2**20
"""Uncompressed bytes of a shard when nobody says how many shards to make."""

PIECE_BYTES = 32 * 2**20
"""Bytes of an array that are made and packed at once, but one chunk at least."""


@dataclass(frozen=True)
class Rows:
    """The first dimension of an array that is never in memory as a whole: its rows are made when they are asked for.

    Attributes
    ----------
    ids : int64 (n,)
        The number of each row at its source.
    sample_shape : tuple of int
        Of one row.
    dtype : numpy dtype
    read : callable
        Takes ids, int64 (m,), and returns their rows, (m, *sample_shape) of dtype.
    """

    ids: np.ndarray
    sample_shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[np.ndarray], np.ndarray]

    def __len__(self) -> int:
        return self.ids.size

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.read(self.ids[rows])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all rows."""
        return (self.ids.size, *self.sample_shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return math.prod(self.shape) * self.dtype.itemsize

    def take(self, indices: np.ndarray, axis: int = 0) -> Rows:
        """Return some of the rows, int64 (m,), in that order; reads nothing. `axis` is 0, as in ``ndarray.take``."""
        return replace(self, ids=self.ids[indices])


@dataclass(frozen=True)
class Split:
    """The samples of one split before they are written.

    Attributes
    ----------
    arrays : mapping of str to ndarray or Rows
        Each (n, ...), with the same n.
    attributes : dict of str to dict
        HDF5 attributes per array, such as the names of features and classes.
    max_chunk : int
        Samples of a chunk at most.
    """

    arrays: Mapping[str, np.ndarray | Rows]
    attributes: dict[str, dict[str, list[str] | str]] = field(default_factory=dict)
    max_chunk: int = MAX_CHUNK_SAMPLES

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return len(next(iter(self.arrays.values())))

    def take(self, ids: np.ndarray) -> Split:
        """Return the samples `ids`, int64 (n,), in that order."""
        return replace(self, arrays={name: array.take(ids, axis=0) for name, array in self.arrays.items()})


def check_target(folder: Path) -> None:
    """Raise an InputError if there is something at the place where a dataset is to be written."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("exists already", where=folder, remedy="give another folder, or remove this one first")


def write_dataset(
    folder: str | os.PathLike[str],
    splits: Mapping[str, Split],
    *,
    num_shards: Mapping[str, int | None],
    compression: int = 6,
    notes: Mapping[str, bytes] | None = None,
    ranks: Group | None = None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Write ``folder/<split>/<split>-00000-of-0000N.h5`` for each split. Collective.

    Arrays are chunked along samples, shuffled, gzipped and carry Fletcher-32 checksums. The ranks take turns at the
    shards, which hold the same bytes on any number of ranks. Everything is written to a hidden folder beside, forced
    onto the disk and renamed at the end, so `folder` is whole or not there.

    Parameters
    ----------
    folder : path-like
        Absent, or empty; all ranks see it.
    splits : dict of str to Split
        The same on every rank.
    num_shards : dict of str to int or None
        Per split; None makes one shard per `SHARD_BYTES`.
    compression : int
        Level of gzip, 0 to 9.
    notes : dict of str to bytes, optional
        Further files in `folder`, by name.
    ranks : Group, optional
        Who shares the work; by default this process does it alone.
    check : callable
        Called between pieces and before the folder gets its name; what it raises ends the work.

    Raises
    ------
    InputError
        The folder holds something, there are more shards than samples, or rows cannot be read.
    StorageError
        The disk is full or cannot be written; nothing is left behind.
    """
    ranks = ranks or Alone()
    folder = Path(folder).expanduser().resolve()

    def plan() -> tuple[Path, list[tuple[str, int, int]]]:
        check_target(folder)
        counts = {name: _shard_count(name, split, num_shards.get(name)) for name, split in splits.items()}
        return beside(folder, "part"), [
            (name, index, count) for name, count in counts.items() for index in range(count)
        ]

    def prepare() -> None:
        with writing(folder):
            for name in splits:
                (aside / name).mkdir(parents=True)
            for name, content in (notes or {}).items():
                write_whole(aside / name, content)

    def write(turn: int) -> None:
        if turn + ranks.rank < len(shards):
            name, index, count = shards[turn + ranks.rank]
            with writing(folder):
                _write_shard(aside / name, name, splits[name], index, count, compression, check)

    def finish() -> None:
        with writing(folder):
            fsync(aside)
            check()
            aside.rename(folder)
            fsync(folder.parent)

    aside, shards = agree(ranks, plan)
    try:
        agree(ranks, prepare)
        for turn in range(0, len(shards), ranks.size):
            agree_all(ranks, partial(write, turn))
        agree(ranks, finish)
    finally:
        if ranks.rank == 0:
            shutil.rmtree(aside, ignore_errors=True)


def beside(folder: Path, what: str) -> Path:
    """Return a hidden place beside a folder for what is there only while the folder is made."""
    return folder.with_name(f".{folder.name}.{os.getpid()}.{what}")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what the system says about a disk into a StorageError about the dataset."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            "the dataset could not be written",
            where=folder,
            found=error,
            remedy="free or name another place, then convert again: nothing was left behind",
        ) from error


def _shard_count(name: str, split: Split, wanted: int | None) -> int:
    count = wanted or -(-sum(array.nbytes for array in split.arrays.values()) // SHARD_BYTES)
    if not 1 <= count <= split.num_samples:
        raise InputError(
            f"cannot make {count} shards of the split {name!r}",
            found=f"{split.num_samples} samples",
            expected="at least one sample in each shard",
        )
    return count


def _write_shard(
    folder: Path, name: str, split: Split, index: int, count: int, compression: int, check: Callable[[], None]
) -> None:
    """Write one file, made in memory first: HDF5 itself can crash the process when the disk is full."""
    path = folder / shard_name(name, index, count)
    first, last = share(split.num_samples, index, count)
    with h5py.File(path, "w", driver="core", backing_store=False, libver=LIBVER) as file:
        file.attrs.update({"format": fixed_text(FORMAT), INDEX_ATTRIBUTE: index, COUNT_ATTRIBUTE: count})
        for array_name, array in split.arrays.items():
            chunk = min(last - first, chunk_samples(array, split.max_chunk))
            dataset = file.create_dataset(
                array_name,
                shape=(last - first, *array.shape[1:]),
                dtype=array.dtype,
                chunks=(chunk, *array.shape[1:]),
                compression="gzip" if compression else None,
                compression_opts=compression or None,
                shuffle=True,
                fletcher32=True,
            )
            # Whole chunks, each of which is packed once.
            piece = max(1, PIECE_BYTES * len(array) // max(1, array.nbytes) // chunk) * chunk
            for start in range(first, last, piece):
                stop = min(start + piece, last)
                dataset[start - first : stop - first] = array[start:stop]
                check()
            texts = split.attributes.get(array_name, {})
            dataset.attrs.update({key: fixed_text(text) for key, text in texts.items()})
        file.flush()
        image = file.id.get_file_image()
    write_whole(path, image)


def chunk_samples(array: np.ndarray | Rows, most: int = MAX_CHUNK_SAMPLES) -> int:
    """Return how many samples of an array to put in a chunk: a power of two, about `TARGET_BLOCK_BYTES` together."""
    row_bytes = max(1, array.nbytes // len(array))
    return 1 << min(most, max(1, TARGET_BLOCK_BYTES // row_bytes)).bit_length() - 1
