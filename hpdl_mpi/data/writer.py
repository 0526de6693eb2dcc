"""Writes a dataset: one folder per split, shards that check themselves, all or nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

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


@dataclass(frozen=True)
class Split:
    """The samples of one split before they are written.

    Attributes
    ----------
    arrays : dict of str to ndarray
        Each (n, ...), with the same n.
    attributes : dict of str to dict
        HDF5 attributes per array, such as the names of features and classes.
    """

    arrays: dict[str, np.ndarray]
    attributes: dict[str, dict[str, list[str] | str]] = field(default_factory=dict)

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return len(next(iter(self.arrays.values())))

    def take(self, ids: np.ndarray) -> Split:
        """Return the samples `ids`, int64 (n,), in that order."""
        return Split({name: array[ids] for name, array in self.arrays.items()}, self.attributes)


def check_target(folder: Path) -> None:
    """Raise an InputError if there is something at the place where a dataset is to be written."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError("exists already", where=folder, remedy="give another folder, or remove this one first")


def write_dataset(
    folder: str | os.PathLike[str],
    splits: Mapping[str, Split],
    *,
    num_shards: Mapping[str, int | None],
    compression: int = 6,
) -> None:
    """Write ``folder/<split>/<split>-00000-of-0000N.h5`` for each split.

    Arrays are chunked along samples, shuffled, gzipped and carry Fletcher-32 checksums. Everything is written to a
    hidden folder beside, forced onto the disk and renamed at the end, so `folder` is whole or not there.

    Parameters
    ----------
    folder : path-like
        Absent, or empty.
    num_shards : dict of str to int or None
        Per split; None makes one shard per `SHARD_BYTES`.
    compression : int
        Level of gzip, 0 to 9.

    Raises
    ------
    InputError
        The folder holds something, or there are more shards than samples.
    StorageError
        The disk is full or cannot be written; nothing is left behind.
    """
    folder = Path(folder).expanduser().resolve()
    check_target(folder)
    counts = {name: _shard_count(name, split, num_shards.get(name)) for name, split in splits.items()}
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        for name, split in splits.items():
            (aside / name).mkdir(parents=True)
            for index in range(counts[name]):
                _write_shard(aside / name, name, split, index, counts[name], compression)
        fsync(aside)
        aside.rename(folder)
        fsync(folder.parent)
    except OSError as error:
        raise StorageError(
            "the dataset could not be written",
            where=folder,
            found=error,
            remedy="free or name another place, then convert again: nothing was left behind",
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _shard_count(name: str, split: Split, wanted: int | None) -> int:
    count = wanted or -(-sum(array.nbytes for array in split.arrays.values()) // SHARD_BYTES)
    if not 1 <= count <= split.num_samples:
        raise InputError(
            f"cannot make {count} shards of the split {name!r}",
            found=f"{split.num_samples} samples",
            expected="at least one sample in each shard",
        )
    return count


def _write_shard(folder: Path, name: str, split: Split, index: int, count: int, compression: int) -> None:
    """Write one file, made in memory first: HDF5 itself can crash the process when the disk is full."""
    path = folder / shard_name(name, index, count)
    first, last = share(split.num_samples, index, count)
    with h5py.File(path, "w", driver="core", backing_store=False, libver=LIBVER) as file:
        file.attrs.update({"format": fixed_text(FORMAT), INDEX_ATTRIBUTE: index, COUNT_ATTRIBUTE: count})
        for array_name, array in split.arrays.items():
            dataset = file.create_dataset(
                array_name,
                data=array[first:last],
                chunks=(min(last - first, chunk_samples(array)), *array.shape[1:]),
                compression="gzip" if compression else None,
                compression_opts=compression or None,
                shuffle=True,
                fletcher32=True,
            )
            texts = split.attributes.get(array_name, {})
            dataset.attrs.update({key: fixed_text(text) for key, text in texts.items()})
        file.flush()
        image = file.id.get_file_image()
    write_whole(path, image)


def chunk_samples(array: np.ndarray) -> int:
    """Return how many samples of an array to put in a chunk: a power of two, about `TARGET_BLOCK_BYTES` together."""
    row_bytes = max(1, array.nbytes // len(array))
    return 1 << min(MAX_CHUNK_SAMPLES, max(1, TARGET_BLOCK_BYTES // row_bytes)).bit_length() - 1
