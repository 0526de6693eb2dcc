"""A dataset: samples in one or many HDF5 files, read in any order through a cache of blocks."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from hpdl_mpi.base.errors import BadSample, InputError, amend
from hpdl_mpi.data.blocks import BlockReader
from hpdl_mpi.data.hdf5 import ShardArray, ShardFiles, describe, stated_place
from hpdl_mpi.data.sampler import Shuffle, epoch_order
from hpdl_mpi.data.shards import expanded, find_shards, refuse_missing

CACHE_BYTES = 256 * 2**20
"""Default bound of the blocks kept in memory."""

WINDOW_BYTES = 64 * 2**20
"""Bytes of inputs that block shuffling mixes at most: a constant, so that the order depends on the data alone."""

Which = Literal["inputs", "targets"]


class Dataset:
    """Inputs and targets of many samples, local to this process. Open one with `Dataset.open`.

    Files are opened when they are first read, read-only. `read` may be called from any thread.

    Attributes
    ----------
    path : path-like
        As given to `open`.
    names : dict
        Of the arrays of "inputs" and "targets" in the files.
    num_samples : int
    input_shape, target_shape : tuple of int
        Of one sample, as stored.
    input_dtype, target_dtype : numpy dtype
        In memory: native byte order, float16 widened to float32.
    block_starts : int64 (num_blocks + 1,)
        First sample of each block of inputs. Blocks are whole chunks along the first dimension and never cross a
        file.
    shuffle_window : int
        Blocks that block shuffling mixes: `WINDOW_BYTES` of inputs.
    fingerprint : str
        Digest of names, shapes, types, counts and blocks: what the order and meaning of sample ids depend on.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        files: ShardFiles,
        names: tuple[str, str],
        shards: Sequence[tuple[ShardArray, ShardArray]],
        cache_bytes: int,
    ) -> None:
        self.path = path
        self.names: dict[Which, str] = {"inputs": names[0], "targets": names[1]}
        self._files = files
        self._lock = threading.Lock()
        sizes = [array.row_bytes for array in shards[0]]
        inputs, targets = (
            BlockReader(name, files, [pair[i] for pair in shards], cache_bytes * sizes[i] // sum(sizes))
            for i, name in enumerate(names)
        )
        self._readers: dict[Which, BlockReader] = {"inputs": inputs, "targets": targets}
        self.num_samples = int(inputs.starts[-1])
        self.input_shape, self.input_dtype = inputs.shape, inputs.dtype
        self.target_shape, self.target_dtype = targets.shape, targets.dtype
        self.block_starts = inputs.starts
        self.shuffle_window = max(1, WINDOW_BYTES // inputs.block_bytes)
        parts = [names, [(a.shape, a.dtype.str, a.count, a.block_length) for pair in shards for a in pair]]
        self.fingerprint = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        inputs: str = "x",
        targets: str = "y",
        *,
        cache_bytes: int = CACHE_BYTES,
    ) -> Dataset:
        """Check what all files say about themselves and return the dataset; reads no samples.

        Parameters
        ----------
        path : path-like
            A folder of shards, a glob, or one HDF5 file.
        inputs, targets : str
            Names of the arrays; their first dimension is the samples.
        cache_bytes : int
            Bound of the blocks kept in memory, shared by inputs and targets in proportion to their sizes.

        Raises
        ------
        InputError
            Nothing there, a shard missing or unreadable, an array absent, empty, or not numbers, or files that
            disagree about shapes or types.
        """
        paths = find_shards(path)
        files = ShardFiles(paths)
        shards = []
        places = []
        try:
            for index, file_path in enumerate(paths):
                file = files[index]
                shards.append((describe(file, file_path, inputs), describe(file, file_path, targets)))
                places.append(stated_place(file, file_path))
                _check_agreement(paths, (inputs, targets), shards)
        finally:
            files.close()
        folder = expanded(path)
        if folder.is_dir():
            refuse_missing(folder, places)
        return cls(path, files, (inputs, targets), shards, cache_bytes)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the blocks kept in memory at most."""
        return sum(reader.cache_bytes for reader in self._readers.values())

    def read(self, ids: np.ndarray, inputs_out: np.ndarray | None, targets_out: np.ndarray | None) -> None:
        """Copy samples into the caller's arrays; local, blocking, thread-safe.

        Parameters
        ----------
        ids : int64 (n,)
            Any order, repeats allowed.
        inputs_out, targets_out : (n, *input_shape), (n, *target_shape)
            C-contiguous, of `input_dtype` and `target_dtype`; overwritten. None: these are not read.

        Raises
        ------
        InputError
            A file is damaged where the samples are; names the file and the samples.
        IndexError
            An id outside ``range(num_samples)``.
        """
        if inputs_out is not None:
            self._read("inputs", ids, inputs_out)
        if targets_out is not None:
            self._read("targets", ids, targets_out)

    def _read(self, which: Which, ids: np.ndarray, out: np.ndarray) -> None:
        reader = self._readers[which]
        if out.shape != (ids.size, *reader.shape) or out.dtype != reader.dtype or not out.flags.c_contiguous:
            raise ValueError(f"{which}: need a C-contiguous {(ids.size, *reader.shape)} array of {reader.dtype}")
        if ids.size and not 0 <= ids.min() <= ids.max() < self.num_samples:
            raise IndexError(f"sample ids must lie in [0, {self.num_samples})")
        with self._lock:
            reader.read(ids, out)

    @contextmanager
    def naming_files(self) -> Iterator[None]:
        """Put the file and the sample's number in it in front of a `BadSample` from within."""
        try:
            yield
        except BadSample as error:
            path, number = self._readers["targets"].place(error.sample)
            amend(error, f"{path}: sample {number}: ")
            raise

    def order(self, seed: int, epoch: int, shuffle: Shuffle = "block") -> np.ndarray:
        """Return the ids of all samples, int64 (num_samples,), in the order of one epoch: see `sampler.epoch_order`."""
        return epoch_order(
            self.num_samples, self.block_starts, seed=seed, epoch=epoch, shuffle=shuffle, window=self.shuffle_window
        )

    def blocks(self, which: Which) -> Iterator[np.ndarray]:
        """Yield all samples in storage order, (n, *shape) at a time; each array is borrowed until the next step."""
        reader = self._readers[which]
        buffer = np.empty((reader.block_length, *reader.shape), reader.dtype)
        for start, stop in pairwise(reader.starts):
            self._read(which, np.arange(start, stop), buffer[: stop - start])
            yield buffer[: stop - start]

    def close(self) -> None:
        """Close the files; the next `read` opens them again."""
        with self._lock:
            self._files.close()

    def __enter__(self) -> Dataset:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_agreement(
    paths: Sequence[Path], names: tuple[str, str], shards: Sequence[tuple[ShardArray, ShardArray]]
) -> None:
    """Raise if the arrays of the last file do not fit each other or those of the first."""
    inputs, targets = shards[-1]
    if inputs.count != targets.count:
        raise InputError(
            "inputs and targets differ in number",
            where=paths[len(shards) - 1],
            found=f"{inputs.count} samples in {names[0]!r} and {targets.count} in {names[1]!r}",
            expected="the same number",
        )
    for name, first, last in zip(names, shards[0], shards[-1], strict=True):
        if (first.shape, first.dtype) != (last.shape, last.dtype):
            raise InputError(
                f"shards disagree about {name!r}",
                where=paths[len(shards) - 1],
                found=f"samples of shape {last.shape}, {last.dtype}",
                expected=f"shape {first.shape}, {first.dtype}, as in {paths[0].name}",
                remedy="convert all shards in one go, or name only files that fit together",
            )
