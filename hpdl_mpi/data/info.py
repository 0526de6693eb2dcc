"""What the files of a dataset say about themselves, without reading samples."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import h5py

from hpdl_mpi.data.hdf5 import array_names, find_array, open_shard, reading, text_attribute
from hpdl_mpi.data.shards import find_shards


@dataclass(frozen=True)
class ArraySummary:
    """One array of one file, as stored; `texts` are its attributes of fixed-length strings."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...] | None
    filters: str
    stored_bytes: int
    texts: dict[str, list[str]]


@dataclass(frozen=True)
class FileSummary:
    """One file: its size in bytes and its arrays."""

    path: Path
    file_bytes: int
    arrays: list[ArraySummary]


def summarize(path: str | os.PathLike[str]) -> list[FileSummary]:
    """Describe every array of every file of a dataset, whatever the names; raise InputError if one is unreadable."""
    return [_summarize_file(file) for file in find_shards(path)]


def _summarize_file(path: Path) -> FileSummary:
    with open_shard(path) as file:
        arrays = [_summarize_array(find_array(file, path, name), path) for name in array_names(file, path)]
    return FileSummary(path, path.stat().st_size, arrays)


def _summarize_array(array: h5py.Dataset, path: Path) -> ArraySummary:
    with reading(f"{path}: {array.name}"):
        return ArraySummary(
            name=array.name.lstrip("/"),
            shape=array.shape,
            dtype=str(array.dtype),
            chunks=array.chunks,
            filters=_filters(array),
            stored_bytes=array.id.get_storage_size(),
            texts={name: text_attribute(array, name) for name in array.attrs},
        )


def _filters(array: h5py.Dataset) -> str:
    """Return the names of the filters that each chunk goes through, such as "shuffle, deflate 6, fletcher32"."""
    properties = array.id.get_create_plist()
    filters = [properties.get_filter(i) for i in range(properties.get_nfilters())]
    levels = {h5py.h5z.FILTER_DEFLATE: lambda values: f" {values[0]}"}
    return ", ".join(name.decode() + levels.get(code, lambda _: "")(values) for code, _, values, name in filters)
