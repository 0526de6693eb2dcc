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
from hpdl_mpi.data.windows import Windows


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
        By the names of arrays: "source" and "target" of pairs, any others of flat arrays or of rows.

    Raises
    ------
    InputError
        The first thing that is wrong, with its file and place: what `Windows.open` or `Pairs.open` finds, a tokenizer
        of pairs without padding or an end, a shard under another's name, a damaged chunk, an id outside the vocabulary,
        a sequence that does not end where it should.
    """
    are_pairs = {SOURCE, TARGET} <= set(tokenizers)
    sides = [SOURCE, TARGET] if are_pairs else []
    others = [name for name in tokenizers if name not in sides]
    if are_pairs:
        _require_ends(path, tokenizers)
        Pairs.open(path).close()
    for name in others:
        _require_tokens(path, name)
    for shard_path in find_shards(path):
        num_pairs, usage = None, {}
        with open_shard(shard_path) as file:
            checksums = check_layout(file, shard_path, [*sides, *map(length_name, sides), *others])
        if are_pairs:
            with Pairs.open(shard_path, cache_bytes=0) as pairs:
                num_pairs = pairs.num_samples
                usage[SOURCE] = _usage(pairs, "inputs", tokenizers[SOURCE], pairs.source_lengths)
                usage[TARGET] = _usage(pairs, "targets", tokenizers[TARGET], pairs.target_lengths)
        for name in others:
            with Dataset.open(shard_path, name, name, cache_bytes=0) as shard:
                usage[name] = _usage(shard, "inputs", tokenizers[name], None)
        yield TextReport(shard_path, num_pairs, usage, checksums)


def _require_ends(path: str | os.PathLike[str], tokenizers: Mapping[str, Tokenizer]) -> None:
    """Raise if a tokenizer has no id that ends a sequence of pairs, or none that pads it."""
    for name in (SOURCE, TARGET):
        if tokenizers[name].pad is None or tokenizers[name].eos is None:
            raise InputError(
                "a tokenizer that pairs cannot have",
                where=f"{path}: {name}",
                found=f"the special ids {', '.join(tokenizers[name].specials) or 'none'}",
                expected="pad and eos among them",
                remedy=_ITS_OWN,
            )


def _require_tokens(path: str | os.PathLike[str], name: str) -> None:
    """Raise if an array is neither rows of integers nor what is read as windows."""
    with Dataset.open(path, name, name, cache_bytes=0) as rows:
        are_rows = len(rows.input_shape) == 1 and rows.input_dtype.kind in "iu"
    if not are_rows:
        Windows.open(path, name, context=1, cache_bytes=0).close()


_ITS_OWN = "put the tokenizer.json that belongs to these data beside them, or convert the text again"


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
                remedy=_ITS_OWN,
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
