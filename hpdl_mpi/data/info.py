"""What the files of a dataset say about themselves, without reading samples."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import h5py

from hpdl_mpi.base.errors import InputError, amended
from hpdl_mpi.data.hdf5 import ShardArray, array_names, describe, find_array, open_shard, reading, text_attribute
from hpdl_mpi.data.pairs import length_name
from hpdl_mpi.data.shards import find_shards
from hpdl_mpi.data.text import Tokenizer, own_tokenizers


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


SHOWN = 80
"""Characters of a text that are shown."""


@dataclass(frozen=True)
class TextSummary:
    """An array of tokens: how many there are without padding, of which vocabulary, and how the text begins."""

    name: str
    tokens: int
    kind: str
    vocabulary_size: int
    begin: str


def summarize(path: str | os.PathLike[str]) -> list[FileSummary]:
    """Describe every array of every file of a dataset, whatever the names; raise InputError if one is unreadable."""
    return [_summarize_file(file) for file in find_shards(path)]


def summarize_text(path: str | os.PathLike[str]) -> list[TextSummary]:
    """Describe the arrays of a dataset that tokenizers beside it are of; empty if there are none. Reads few of them.

    An array that readers would not take for tokens is no text, whatever lies beside it.

    Raises
    ------
    InputError
        A file of tokenizers or of data is damaged, or they do not belong together.
    """
    files = find_shards(path)
    found = []
    for name, tokenizer in own_tokenizers(path).items():
        counts = [_count_tokens(file_path, name) for file_path in files]
        if None not in counts:
            begin = _begin(files[0], name, tokenizer)
            found.append(TextSummary(name, sum(filter(None, counts)), tokenizer.kind, tokenizer.vocabulary_size, begin))
    return found


def _count_tokens(path: Path, name: str) -> int | None:
    """Return the number of tokens in an array of one file, flat or with a row for each sequence; None if it is none."""
    with open_shard(path) as file:
        array = _integers(file, path, name)
        if array is None or len(array.shape) > 1:
            return None
        if not array.shape or length_name(name) not in array_names(file, path):
            return array.count * math.prod(array.shape)
        lengths = _integers(file, path, length_name(name))
        if lengths is None or lengths.shape or lengths.count != array.count:
            return None
        return _sum_of(file, path, length_name(name), lengths)


def _integers(file: h5py.File, path: Path, name: str) -> ShardArray | None:
    """Return what a file says about an array of integers; None if there is no such one, or readers would refuse it."""
    try:
        array = describe(file, path, name)
    except InputError:  # `summarize` tells of files that are damaged
        return None
    return array if array.dtype.kind in "iu" else None


def _sum_of(file: h5py.File, path: Path, name: str, array: ShardArray) -> int:
    """Return the sum of a flat array, of which a block at a time is in memory."""
    with reading(f"{path}: {name}"):
        starts = range(0, array.count, array.block_length)
        return sum(int(file[name][start : start + array.block_length].sum()) for start in starts)


def _begin(path: Path, name: str, tokenizer: Tokenizer) -> str:
    with open_shard(path) as file, reading(f"{path}: {name}"), amended(f"{path}: {name}: "):
        first = file[name][:SHOWN] if file[name].ndim == 1 else file[name][0, :SHOWN]
        return tokenizer.decode(first)[:SHOWN]


def _summarize_file(path: Path) -> FileSummary:
    with open_shard(path) as file:
        arrays = [_summarize_array(find_array(file, path, name), path) for name in array_names(file, path)]
    return FileSummary(path, path.stat().st_size, arrays)


def _summarize_array(array: h5py.Dataset, path: Path) -> ArraySummary:
    with reading(f"{path}: {array.name}"):
        return ArraySummary(
            name=array.name.lstrip("/"),
            shape=array.shape or (),  # None of an array of nothing
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
