"""Pairs of token sequences, padded to one length each: a source to read, and a target to write."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Sequence

import numpy as np

from hpdl_mpi.base.errors import InputError, amended
from hpdl_mpi.base.memory import aligned, check_memory
from hpdl_mpi.data.dataset import Dataset
from hpdl_mpi.data.hdf5 import ShardArray, ShardFiles, reading
from hpdl_mpi.data.samples import CACHE_BYTES
from hpdl_mpi.data.sharded import fingerprint, open_arrays

SOURCE, TARGET = "source", "target"
"""The arrays."""

LEAST = {SOURCE: 1, TARGET: 2}
"""Tokens of a sequence: one to read; of what is written the begin, and one that follows."""


def length_name(array: str) -> str:
    """Return the name of the array that holds the lengths of the sequences in another."""
    return f"{array}_length"


class Pairs(Dataset):
    """Inputs are sources, targets are targets, as stored; their lengths are in memory. Open some with `Pairs.open`.

    Attributes
    ----------
    source_lengths, target_lengths : int64 (num_samples,)
        Tokens of each sequence, bos and eos included.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        files: ShardFiles,
        names: tuple[str, str],
        shards: Sequence[tuple[ShardArray, ...]],
        cache_bytes: int,
        lengths: tuple[np.ndarray, np.ndarray],
    ) -> None:
        super().__init__(path, files, names, shards, cache_bytes)
        self.source_lengths, self.target_lengths = lengths
        digest = hashlib.sha256()
        for values in lengths:
            digest.update(values.data)
        self.fingerprint = fingerprint(names, shards, digest.hexdigest())

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        inputs: str = SOURCE,
        targets: str = TARGET,
        *,
        cache_bytes: int = CACHE_BYTES,
    ) -> Pairs:
        """Check what all files say about themselves, read the lengths and return the pairs.

        Parameters
        ----------
        path : path-like
            A folder of shards, a glob, or one HDF5 file.
        inputs, targets : str
            Names of the arrays of sources and targets, integers (n, S) and (n, T); beside each lies that of its
            lengths, integers (n,), see `length_name`.
        cache_bytes : int
            Bound of the blocks kept in memory.

        Raises
        ------
        InputError
            What `open_arrays` finds, arrays of another kind, a length that cannot be, or not enough memory for all.
        """
        names = inputs, targets
        files, shards = open_arrays(path, (*names, *map(length_name, names)))
        for name, array, dims in zip((*names, *map(length_name, names)), shards[0], (1, 1, 0, 0), strict=True):
            if len(array.shape) != dims or array.dtype.kind not in "iu":
                raise InputError(
                    "no pairs of token sequences",
                    where=f"{path}: {name}",
                    found=f"samples of shape {array.shape}, {array.dtype}",
                    expected=f"integers of shape {'(length,)' if dims else '()'}",
                    remedy="leave out data.pairs, or convert pairs with hpdl data convert --pairs",
                )
        counts = [arrays[0].count for arrays in shards]
        remedy = "use fewer pairs, or start fewer ranks on a node"
        with amended(f"{path}: "):
            check_memory(2 * 8 * sum(counts), f"the lengths of {sum(counts):,} pairs", remedy=remedy)
            lengths = [_read_lengths(files, length_name(name), counts) for name in names]
        for name, kind, values, array in zip(names, LEAST, lengths, shards[0], strict=False):
            _check_lengths(f"{path}: {length_name(name)}", values, LEAST[kind], array.shape[0])
        return cls(path, files, names, [arrays[:2] for arrays in shards], cache_bytes, (lengths[0], lengths[1]))


def _read_lengths(files: ShardFiles, name: str, counts: Sequence[int]) -> np.ndarray:
    """Return a flat array of integers, of all shards, which have so many each."""
    lengths = aligned(sum(counts), np.int64)
    starts = itertools.accumulate(counts, initial=0)
    for index, (path, count, start) in enumerate(zip(files.paths, counts, starts, strict=False)):
        with reading(f"{path}: {name}"):
            files[index][name].read_direct(lengths[start : start + count])
    files.close()
    return lengths


def _check_lengths(where: str, lengths: np.ndarray, least: int, most: int) -> None:
    wrong = (lengths < least) | (lengths > most)
    if wrong.any():
        sample = int(np.argmax(wrong))
        raise InputError(
            f"the length of sample {sample} cannot be",
            where=where,
            found=int(lengths[sample]),
            expected=f"{least} to {most}",
            remedy="convert the pairs again",
        )
