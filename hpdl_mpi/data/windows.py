"""Windows of running text: a flat array of tokens, read as samples of equal length for a language model."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from hpdl_mpi.base.errors import InputError, is_integer, require
from hpdl_mpi.data.blocks import BlockReader
from hpdl_mpi.data.hdf5 import ShardArray, ShardFiles
from hpdl_mpi.data.samples import CACHE_BYTES, WINDOW_BYTES, Samples, Which
from hpdl_mpi.data.sharded import fingerprint, open_arrays

TOKENS = "tokens"
"""The array of tokens of running text."""


class Windows(Samples):
    """Sample i has tokens ``i * context`` to ``(i + 1) * context`` as inputs, and those one further on as targets.

    Windows go on from shard to shard. Of N tokens there are ``(N - 1) // context``; the rest at the end is left out.
    A window belongs to the block that its first token lies in. Open some with `Windows.open`.

    Attributes
    ----------
    context : int
        Tokens of a window.
    num_tokens : int
        Of all shards.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        files: ShardFiles,
        name: str,
        shards: Sequence[tuple[ShardArray, ...]],
        context: int,
        cache_bytes: int,
    ) -> None:
        self.path, self.context = path, context
        self.names = {"inputs": name, "targets": name}
        self._files = files
        self._lock = threading.Lock()
        self._reader = BlockReader(name, files, [array for (array,) in shards], cache_bytes)
        starts = self._reader.starts
        self.num_tokens = int(starts[-1])
        self.num_samples = (self.num_tokens - 1) // context
        self.input_shape = self.target_shape = (context,)
        self.input_dtype = self.target_dtype = self._reader.dtype
        self.block_starts = np.unique(np.minimum(-(-starts // context), self.num_samples))
        self.shuffle_window = max(1, WINDOW_BYTES // self._reader.block_bytes)
        self.fingerprint = fingerprint((name,), shards, context)
        self._offsets = np.arange(context + 1)
        self._places = np.empty((0, context + 1), np.int64)
        self._tokens = np.empty((0, context + 1), self.input_dtype)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        name: str = TOKENS,
        *,
        context: int,
        cache_bytes: int = CACHE_BYTES,
    ) -> Windows:
        """Check what all files say about themselves and return the windows; reads no tokens.

        Parameters
        ----------
        path : path-like
            A folder of shards, a glob, or one HDF5 file.
        name : str
            Of the array, integers (n,).
        context : int
            Tokens of a window.
        cache_bytes : int
            Bound of the blocks kept in memory.

        Raises
        ------
        InputError
            What `open_arrays` finds, there is no context, the array is not flat or not of integers, or it is too short
            for a window.
        """
        require("context", context, is_integer(context, 1), "an integer of at least 1")
        files, shards = open_arrays(path, (name,))
        (first,) = shards[0]
        if first.shape or first.dtype.kind not in "iu":
            raise InputError(
                "no flat array of tokens",
                where=f"{path}: {name}",
                found=f"samples of shape {first.shape}, {first.dtype}",
                expected="integers of shape ()",
                remedy="leave out data.context, or name the array of tokens with data.inputs",
            )
        count = sum(array.count for (array,) in shards)
        if count <= context:
            raise InputError(
                "too few tokens for a window",
                where=f"{path}: {name}",
                found=f"{count} tokens",
                expected=f"{context + 1} at least: a window of data.context and one that follows",
            )
        return cls(path, files, name, shards, context, cache_bytes)

    @property
    def cache_bytes(self) -> int:
        return self._reader.cache_bytes

    def read(self, ids: np.ndarray, inputs_out: np.ndarray | None, targets_out: np.ndarray | None) -> None:
        if inputs_out is not None:
            self._check_read("inputs", ids, inputs_out)
        if targets_out is not None:
            self._check_read("targets", ids, targets_out)
        with self._lock:
            tokens = self._gather(ids)
            if inputs_out is not None:
                inputs_out[...] = tokens[:, :-1]
            if targets_out is not None:
                targets_out[...] = tokens[:, 1:]

    def _gather(self, ids: np.ndarray) -> np.ndarray:
        """Return the tokens of windows, and the one that follows each; borrowed until the next call."""
        if len(self._places) < ids.size:
            self._places = np.empty((ids.size, self.context + 1), np.int64)
            self._tokens = np.empty(self._places.shape, self.input_dtype)
        places, tokens = self._places[: ids.size], self._tokens[: ids.size]
        np.multiply(ids[:, np.newaxis], self.context, out=places)
        places += self._offsets
        self._reader.read(places.reshape(-1), tokens.reshape(-1))
        return tokens

    def place(self, sample_id: int) -> tuple[Path, str]:
        path, number = self._reader.place(sample_id * self.context)
        return path, f"window from token {number}"

    def blocks(self, which: Which) -> Iterator[np.ndarray]:
        buffer = np.empty((int(np.diff(self.block_starts).max()), self.context), self.input_dtype)
        for start, stop in pairwise(self.block_starts):
            out = buffer[: stop - start]
            self.read(np.arange(start, stop), *((out, None) if which == "inputs" else (None, out)))
            yield out

    def close(self) -> None:
        with self._lock:
            self._files.close()
