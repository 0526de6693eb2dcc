"""A dataset: samples in one or many HDF5 files, read in any order through a cache of blocks."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from hpdl_mpi.data.blocks import BlockReader
from hpdl_mpi.data.hdf5 import ShardArray, ShardFiles
from hpdl_mpi.data.samples import CACHE_BYTES, WINDOW_BYTES, Samples, Which
from hpdl_mpi.data.sharded import fingerprint, open_arrays


class Dataset(Samples):
    """Inputs and targets of many samples, local to this process. Open one with `Dataset.open`.

    Files are opened when they are first read, read-only. Blocks are whole chunks along the first dimension and never
    cross a file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        files: ShardFiles,
        names: tuple[str, str],
        shards: Sequence[tuple[ShardArray, ...]],
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
        self.fingerprint = fingerprint(names, shards)

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
        files, shards = open_arrays(path, (inputs, targets))
        return cls(path, files, (inputs, targets), shards, cache_bytes)

    @property
    def cache_bytes(self) -> int:
        return sum(reader.cache_bytes for reader in self._readers.values())

    def read(self, ids: np.ndarray, inputs_out: np.ndarray | None, targets_out: np.ndarray | None) -> None:
        if inputs_out is not None:
            self._read("inputs", ids, inputs_out)
        if targets_out is not None:
            self._read("targets", ids, targets_out)

    def _read(self, which: Which, ids: np.ndarray, out: np.ndarray) -> None:
        self._check_read(which, ids, out)
        with self._lock:
            self._readers[which].read(ids, out)

    def place(self, sample_id: int) -> tuple[Path, str]:
        path, number = self._readers["targets"].place(sample_id)
        return path, f"sample {number}"

    def blocks(self, which: Which) -> Iterator[np.ndarray]:
        reader = self._readers[which]
        buffer = np.empty((reader.block_length, *reader.shape), reader.dtype)
        for start, stop in pairwise(reader.starts):
            self._read(which, np.arange(start, stop), buffer[: stop - start])
            yield buffer[: stop - start]

    def close(self) -> None:
        with self._lock:
            self._files.close()
