"""Reads every token of a dataset of text once: inside the vocabulary, and sequences as long as they say."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data.dataset import Dataset
from hpdl_mpi.data.hdf5 import open_shard
from hpdl_mpi.data.pairs import SOURCE, TARGET, Pairs, length_name
from hpdl_mpi.data.samples import Which
from hpdl_mpi.data.shards import find_shards
from hpdl_mpi.data.text import Tokenizer
from hpdl_mpi.data.verify import check_layout


@dataclass(frozen=True)
class Usage:
    """How an array uses its vocabulary: its tokens and the ids that occur, without what pads sequences."""

    tokens: int
    ids: int
    vocabulary_size: int


@dataclass(frozen=True)
class TextReport:
    """What reading all of a sound shard showed.

    Attributes
    ----------
    num_pairs : int or None
        Of a shard of pairs.
    usage : dict of str to Usage
        By the names of the arrays.
    checksums : bool
        Whether all arrays carry checksums, so that damage cannot go unseen.
    """

    path: Path
    num_pairs: int | None
    usage: dict[str, Usage]
    checksums: bool


def verify_text(path: str | os.PathLike[str], tokenizers: Mapping[str, Tokenizer]) -> Iterator[TextReport]:
    """Yield a report for each shard once all of it has been read and found sound.

    Parameters
    ----------
    path : path-like
        A folder of shards, a glob, or one HDF5 file.
    tokenizers : mapping of str to Tokenizer
        By the names of arrays: "source" and "target" of pairs, or one of a flat array of integers.

    Raises
    ------
    InputError
        The first thing that is wrong, with its file and place: what `Dataset.open` or `Pairs.open` finds, a shard under
        another's name, a damaged chunk, an id outside the vocabulary, a sequence that does not end where it should.
    """
    are_pairs = {SOURCE, TARGET} <= set(tokenizers)
    names = [SOURCE, TARGET] if are_pairs else [*tokenizers][:1]
    (Pairs.open(path) if are_pairs else Dataset.open(path, names[0], names[0])).close()
    for shard_path in find_shards(path):
        with open_shard(shard_path) as file:
            lengths = [*map(length_name, names)] if are_pairs else []
            checksums = check_layout(file, shard_path, [*names, *lengths])
        if not are_pairs:
            with Dataset.open(shard_path, names[0], names[0], cache_bytes=0) as shard:
                usage = {names[0]: _usage(shard, "inputs", tokenizers[names[0]], None)}
        else:
            with Pairs.open(shard_path, cache_bytes=0) as shard:
                usage = {
                    SOURCE: _usage(shard, "inputs", tokenizers[SOURCE], shard.source_lengths),
                    TARGET: _usage(shard, "targets", tokenizers[TARGET], shard.target_lengths),
                }
        yield TextReport(shard_path, shard.num_samples if are_pairs else None, usage, checksums)


def _usage(shard: Dataset, which: Which, tokenizer: Tokenizer, lengths: np.ndarray | None) -> Usage:
    size, where = tokenizer.vocabulary_size, f"{shard.path}: {shard.names[which]}"
    counts, total, start = np.zeros(size, np.int64), 0, 0
    for ids in shard.blocks(which):
        outside = (ids < 0) | (ids >= size)
        if outside.any():
            place = tuple(np.argwhere(outside)[0])
            raise InputError(
                f"an id of {'token' if lengths is None else 'sample'} {start + place[0]} is outside the vocabulary",
                where=where,
                found=int(ids[place]),
                expected=f"0 to {size - 1}",
                remedy="put the tokenizer.json that belongs to these data beside them, or convert the text again",
            )
        if lengths is not None:
            _check_ends(ids, lengths[start : start + len(ids)], tokenizer, start, where)
        counts += np.bincount(ids.reshape(-1).astype(np.int64), minlength=size)
        start += len(ids)
        total += ids.size
    if lengths is not None:
        total, counts[tokenizer.pad] = int(lengths.sum()), 0
    return Usage(total, int(np.count_nonzero(counts)), size)


def _check_ends(ids: np.ndarray, lengths: np.ndarray, tokenizer: Tokenizer, start: int, where: str) -> None:
    """Raise if a sequence of a block, ids (n, width), does not end in eos, or padding does not follow."""
    last = ids[np.arange(len(ids)), lengths - 1]
    behind = np.arange(ids.shape[1]) >= lengths[:, np.newaxis]
    wrong = (last != tokenizer.eos) | (behind & (ids != tokenizer.pad)).any(axis=1)
    if wrong.any():
        sample = int(np.argmax(wrong))
        raise InputError(
            f"sample {start + sample} does not end where its length says",
            where=where,
            found=f"a length of {lengths[sample]}",
            expected=f"the id {tokenizer.eos} at its end, and {tokenizer.pad} behind",
            remedy="convert the pairs again",
        )
