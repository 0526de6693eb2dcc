"""The pool of activation buffers: what a step takes it gives back, so a steady step allocates nothing."""

from __future__ import annotations

import bisect
import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from hpdl_mpi.base.memory import ALIGNMENT, heap

_WASTE = 4
"""A free buffer may serve a request down to this fraction of its size, so that a short batch reuses a full one's."""


class Pool:
    """Hands out aligned arrays and takes them back, counting how many hold each of them.

    An array is known by the buffer that it views, so a reshaped or sliced view counts as the array itself. Arrays
    that came from elsewhere are let pass by `retain` and `release`. One thread at a time may use a pool.

    Parameters
    ----------
    poison : bool
        Fill every array handed out with NaN, or the largest integer, to expose a read before a write.
    """

    def __init__(self, poison: bool = False) -> None:
        self.poison = poison
        self._sizes: list[int] = []
        self._free: dict[int, list[np.ndarray]] = {}
        self._live: dict[int, tuple[np.ndarray, int]] = {}
        self._owned: set[int] = set()
        self.bytes_held = 0
        """Bytes of all buffers, free or not."""
        self.bytes_live = 0
        """Bytes of the buffers handed out now."""
        self.peak_live = 0
        """The most that `bytes_live` has been."""

    def take(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """Return an array of `shape` and `dtype`, held once; its content is undefined."""
        dtype = np.dtype(dtype)
        nbytes = math.prod(shape) * dtype.itemsize
        buffer = self._find(max(ALIGNMENT, -(-nbytes // ALIGNMENT) * ALIGNMENT))
        self._live[id(buffer.base)] = buffer, 1
        self.bytes_live += buffer.nbytes
        self.peak_live = max(self.peak_live, self.bytes_live)
        array = buffer[:nbytes].view(dtype).reshape(shape)
        if self.poison:
            array.fill(np.nan if dtype.kind == "f" else np.iinfo(dtype).max)
        return array

    def retain(self, array: Any) -> None:
        """Count one more holder of an array, or of each member of a tuple; other values have none."""
        if isinstance(array, tuple):
            for member in array:
                self.retain(member)
        elif isinstance(array, np.ndarray) and id(array.base) in self._live:
            buffer, count = self._live[id(array.base)]
            self._live[id(array.base)] = buffer, count + 1

    def release(self, array: Any) -> None:
        """Count one holder less; the last one's release frees the buffer.

        Raises
        ------
        RuntimeError
            Nobody holds the array any more: by now the buffer may be somebody else's.
        """
        if isinstance(array, tuple):
            for member in array:
                self.release(member)
        elif isinstance(array, np.ndarray) and id(array.base) in self._live:
            buffer, count = self._live[id(array.base)]
            if count > 1:
                self._live[id(array.base)] = buffer, count - 1
            else:
                del self._live[id(array.base)]
                self.bytes_live -= buffer.nbytes
                self._free[buffer.nbytes].append(buffer)
        elif isinstance(array, np.ndarray) and id(array.base) in self._owned:
            raise RuntimeError(f"an array of shape {array.shape} was released more often than it was held")

    def count(self, array: np.ndarray) -> int:
        """Return how many hold an array of the pool; 0 if it came from elsewhere."""
        return self._live.get(id(array.base), (None, 0))[1]

    def _find(self, nbytes: int) -> np.ndarray:
        """Return the smallest free buffer that fits without much waste, or a new one."""
        for i in range(bisect.bisect_left(self._sizes, nbytes), len(self._sizes)):
            if self._sizes[i] > _WASTE * nbytes:
                break
            if self._free[self._sizes[i]]:
                return self._free[self._sizes[i]].pop()
        if nbytes not in self._free:
            self._free[nbytes] = []
            bisect.insort(self._sizes, nbytes)
        self.bytes_held += nbytes
        buffer = heap(nbytes)
        self._owned.add(id(buffer.base))
        return buffer
