"""One array spread over shards, read in whole blocks that stay in a bounded cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hpdl_mpi.base.memory import aligned
from hpdl_mpi.data.hdf5 import ShardArray, ShardFiles, reading
from hpdl_mpi.kernels.cast import copy_cached_rows


class BlockReader:
    """Gathers samples of one array in any order; decompresses a block once while it stays in the cache.

    The cache is one preallocated array of equal slots; the block that was used least recently makes room for the
    next. The system gives its memory as slots are first filled. Not thread-safe: `Dataset` holds a lock.

    Parameters
    ----------
    name : str
        The array in each file.
    files : ShardFiles
    shards : sequence of ShardArray
        One per file, of the same shape and dtype.
    cache_bytes : int
        Upper bound of the cache, but one block is always held.

    Attributes
    ----------
    starts : int64 (num_blocks + 1,)
        First sample of each block; no block crosses a file.
    """

    def __init__(self, name: str, files: ShardFiles, shards: Sequence[ShardArray], cache_bytes: int) -> None:
        self.name = name
        self.shape, self.dtype = shards[0].shape, shards[0].dtype
        self._files = files
        lengths = [np.full(-(-s.count // s.block_length), s.block_length) for s in shards]
        for shard, length in zip(shards, lengths, strict=True):
            length[-1] = shard.count - shard.block_length * (len(length) - 1)
        self.starts = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
        self._shard_of_block = np.repeat(np.arange(len(shards)), [len(length) for length in lengths])
        self._shard_starts = np.concatenate([[0], np.cumsum([s.count for s in shards])])
        self.block_length = max(s.block_length for s in shards)
        self.block_bytes = self.block_length * math.prod(self.shape) * self.dtype.itemsize
        self._num_slots = min(self.num_blocks, max(1, cache_bytes // self.block_bytes))
        self._clock = 0
        self._slots = np.full(self.num_blocks, -1, np.int64)
        self._block_in_slot = np.full(self._num_slots, -1, np.int64)
        self._last_used = np.zeros(self._num_slots, np.int64)
        self._cache = aligned((self._num_slots, self.block_length, *self.shape), self.dtype)
        self._rows = self._cache.reshape(-1).view(np.uint8).reshape(self._num_slots * self.block_length, -1)
        self._positions = self._pending = np.empty(0, np.int64)

    @property
    def num_blocks(self) -> int:
        """Number of blocks of all shards together."""
        return len(self.starts) - 1

    @property
    def cache_bytes(self) -> int:
        """Bytes of the cache once it is full."""
        return self._cache.nbytes

    def read(self, ids: np.ndarray, out: np.ndarray) -> None:
        """Copy samples `ids`, int64 (n,) within range, into `out` (n, *shape) of this dtype, C-contiguous.

        Raises
        ------
        InputError
            A block is damaged or its file is gone; `out` is then undefined.
        """
        self._reserve(ids.size)
        out_bytes = out.reshape(-1).view(np.uint8).reshape(ids.size, self._rows.shape[1])
        self._clock += 1
        pending = self._pending[: ids.size]
        pending[:] = self._positions[: ids.size]
        remaining = ids.size
        while remaining := copy_cached_rows(
            ids,
            self.starts,
            self._slots,
            self.block_length,
            self._rows,
            pending,
            remaining,
            self._last_used,
            self._clock,
            out_bytes,
        ):
            self._load(int(np.searchsorted(self.starts, ids[pending[0]], side="right")) - 1)

    def place(self, sample_id: int) -> tuple[Path, int]:
        """Return the file that holds a sample, and the sample's number in it."""
        shard = int(np.searchsorted(self._shard_starts, sample_id, side="right")) - 1
        return self._files.paths[shard], sample_id - int(self._shard_starts[shard])

    def _reserve(self, num_ids: int) -> None:
        """Make room for `num_ids` positions."""
        if self._positions.size < num_ids:
            self._positions = np.arange(num_ids)
            self._pending = np.empty(num_ids, np.int64)

    def _load(self, block: int) -> None:
        """Read one block into the slot that was used least recently."""
        slot = int(np.argmin(self._last_used))
        if self._block_in_slot[slot] >= 0:
            self._slots[self._block_in_slot[slot]] = -1
        self._block_in_slot[slot] = -1
        shard = int(self._shard_of_block[block])
        first, last = (int(i - self._shard_starts[shard]) for i in self.starts[block : block + 2])
        with reading(self._files.paths[shard], f"samples {first} to {last - 1} of {self.name!r} cannot be read"):
            source = self._files[shard][self.name]
            source.read_direct(self._cache[slot, : last - first], np.s_[first:last])
        self._block_in_slot[slot] = block
        self._slots[block] = slot
        self._last_used[slot] = self._clock
