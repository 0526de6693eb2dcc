"""Arrays that are spread over the files of a dataset: what all files say about them must fit together."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data.hdf5 import ShardArray, ShardFiles, describe, stated_place
from hpdl_mpi.data.shards import expanded, find_shards, refuse_missing


def open_arrays(path: str | os.PathLike[str], names: Sequence[str]) -> tuple[ShardFiles, list[tuple[ShardArray, ...]]]:
    """Return the files of a dataset, and for each what it says about some arrays; reads no samples.

    Parameters
    ----------
    path : path-like
        A folder of shards, a glob, or one HDF5 file.
    names : sequence of str
        Of the arrays; their first dimension is the samples.

    Raises
    ------
    InputError
        Nothing there, a shard missing or unreadable, an array absent, empty, or not numbers, or files that disagree
        about shapes or types.
    """
    paths = find_shards(path)
    files = ShardFiles(paths)
    shards: list[tuple[ShardArray, ...]] = []
    places = []
    try:
        for index, file_path in enumerate(paths):
            file = files[index]
            shards.append(tuple(describe(file, file_path, name) for name in names))
            places.append(stated_place(file, file_path))
            _check_agreement(paths, names, shards)
    finally:
        files.close()
    folder = expanded(path)
    if folder.is_dir():
        refuse_missing(folder, places)
    return files, shards


def fingerprint(names: tuple[str, ...], shards: Sequence[tuple[ShardArray, ...]], *more: object) -> str:
    """Return a digest of names, shapes, types, counts and blocks, and what else the meaning of ids depends on."""
    parts = [names, [(a.shape, a.dtype.str, a.count, a.block_length) for arrays in shards for a in arrays], *more]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _check_agreement(paths: Sequence[Path], names: Sequence[str], shards: Sequence[tuple[ShardArray, ...]]) -> None:
    """Raise if the arrays of the last file do not fit each other or those of the first."""
    first, last = shards[0], shards[-1]
    where = paths[len(shards) - 1]
    for name, array in zip(names, last, strict=True):
        if array.count != last[0].count:
            raise InputError(
                "inputs and targets differ in number",
                where=where,
                found=f"{last[0].count} samples in {names[0]!r} and {array.count} in {name!r}",
                expected="the same number",
            )
    for name, one, other in zip(names, first, last, strict=True):
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            raise InputError(
                f"shards disagree about {name!r}",
                where=where,
                found=f"samples of shape {other.shape}, {other.dtype}",
                expected=f"shape {one.shape}, {one.dtype}, as in {paths[0].name}",
                remedy="convert all shards in one go, or name only files that fit together",
            )
