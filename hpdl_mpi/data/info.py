"""What the files of a dataset say about themselves, without reading samples."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import h5py

from hpdl_mpi.base.errors import amended
from hpdl_mpi.data.hdf5 import array_names, find_array, open_shard, reading, text_attribute
from hpdl_mpi.data.pairs import length_name
from hpdl_mpi.data.shards import find_shards
from hpdl_mpi.data.text import Tokenizer, find_tokenizers


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

    Raises
    ------
    InputError
        A file of tokenizers or of data is damaged, or they do not belong together.
    """
    files = find_shards(path)
    found = []
    for name, tokenizer in find_tokenizers(path).items():
        counts, begin = [], ""
        for file_path in files:
            with open_shard(file_path) as file:
                if name not in array_names(file, file_path):
                    break
                with reading(f"{file_path}: {name}"), amended(f"{file_path}: {name}: "):
                    counts.append(_count_tokens(file, name))
                    begin = begin or _begin(file[name], tokenizer)
        else:
            found.append(TextSummary(name, sum(counts), tokenizer.kind, tokenizer.vocabulary_size, begin))
    return found


def _count_tokens(file: h5py.File, name: str) -> int:
    lengths = file.get(length_name(name))
    return file[name].size if lengths is None else int(lengths[:].sum())


def _begin(array: h5py.Dataset, tokenizer: Tokenizer) -> str:
    first = array[:SHOWN] if array.ndim == 1 else array[0, :SHOWN]
    return tokenizer.decode(first)[:SHOWN]


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
