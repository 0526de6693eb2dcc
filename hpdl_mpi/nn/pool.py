"""The pool of activation buffers: what a step takes it gives back, so a steady step allocates nothing."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.base.memory import ALIGNMENT, heap

_SEGMENT_BYTES = 2**30
"""Of address space that is asked for at once; memory is what has been written to."""


class _Segment:
    """Addresses that buffers are cut from: always the first that are free, so that those behind are never touched."""

    def __init__(self, nbytes: int) -> None:
        self._memory = heap(nbytes).data
        self._free = [(0, nbytes)]
        self.bytes_touched = 0
        self.reach = 0

    def cut(self, nbytes: int) -> tuple[int, np.ndarray] | None:
        """Return where a buffer starts, and the buffer; None if no hole is large enough."""
        for i, (start, stop) in enumerate(self._free):
            if stop - start >= nbytes:
                end = start + nbytes
                self._free[i : i + 1] = [(end, stop)] if end < stop else []
                self.reach = max(self.reach, end)
                self.bytes_touched = max(self.bytes_touched, end)
                return start, np.frombuffer(self._memory[start:end], np.uint8)
        return None

    def join(self, start: int, stop: int) -> None:
        """Take a buffer's addresses back, and make one hole of neighbours."""
        i = bisect.bisect(self._free, (start, stop))
        if i < len(self._free) and self._free[i][0] == stop:
            stop = self._free.pop(i)[1]
        if i > 0 and self._free[i - 1][1] == start:
            i -= 1
            start = self._free.pop(i)[0]
        self._free.insert(i, (start, stop))

    def owns(self, array: np.ndarray) -> bool:
        """Return whether an array views a buffer that was cut here."""
        base = getattr(array.base, "base", None)
        return isinstance(base, memoryview) and base.obj is self._memory.obj


class _Holding:
    """A buffer that is handed out, and how many hold it."""

    __slots__ = ("buffer", "count", "segment", "start")

    def __init__(self, segment: _Segment, start: int, buffer: np.ndarray) -> None:
        self.segment, self.start, self.buffer = segment, start, buffer
        self.count = 1


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
        self._segments: list[_Segment] = []
        self._live: dict[int, _Holding] = {}
        self.bytes_live = 0
        """Bytes of the buffers handed out now."""
        self.peak_live = 0
        """The most that `bytes_live` has been."""

    @property
    def bytes_held(self) -> int:
        """Bytes that have ever been part of a buffer: the memory that the pool takes."""
        return sum(segment.bytes_touched for segment in self._segments)

    @property
    def extent(self) -> tuple[int, ...]:
        """How far buffers have reached into each piece of memory that they are cut from, in bytes."""
        return tuple(segment.reach for segment in self._segments)

    def measure_extent(self) -> None:
        """Let `extent` tell of what is handed out from now on."""
        for segment in self._segments:
            segment.reach = 0

    def take(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """Return an array of `shape` and `dtype`, held once; its content is undefined."""
        dtype = np.dtype(dtype)
        nbytes = math.prod(shape) * dtype.itemsize
        buffer = self._hold(*self._cut(max(ALIGNMENT, -(-nbytes // ALIGNMENT) * ALIGNMENT)))
        array: np.ndarray = np.ndarray(shape, dtype, buffer)
        if self.poison:
            array.fill(np.nan if dtype.kind == "f" else np.iinfo(dtype).max)
        return array

    def take_extent(self, extent: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """Return all memory as far as buffers once reached, as arrays of bytes held once; nobody else holds any of it.

        Who has it may use arrays again that were handed out while `extent` was measured, though they were released.
        """
        arrays = []
        for segment, nbytes in zip(self._segments, extent, strict=False):
            if not nbytes:
                continue
            found = segment.cut(nbytes)
            assert found is not None, "somebody holds a part of it"
            array: np.ndarray = np.ndarray(nbytes, np.uint8, self._hold(segment, *found))
            if self.poison:
                array.fill(255)  # NaN in any floating-point type
            arrays.append(array)
        return tuple(arrays)

    def _hold(self, segment: _Segment, start: int, buffer: np.ndarray) -> np.ndarray:
        """Return a buffer that has been cut, held once."""
        self._live[id(buffer)] = _Holding(segment, start, buffer)
        self.bytes_live += buffer.nbytes
        self.peak_live = max(self.peak_live, self.bytes_live)
        return buffer

    def retain(self, array: Any) -> None:
        """Count one more holder of an array, or of each member of a tuple; other values have none."""
        if isinstance(array, tuple):
            for member in array:
                self.retain(member)
        elif isinstance(array, np.ndarray) and (holding := self._live.get(id(array.base))):
            holding.count += 1

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
        elif isinstance(array, np.ndarray) and (holding := self._live.get(id(array.base))):
            holding.count -= 1
            if holding.count == 0:
                self._free(holding)
        elif isinstance(array, np.ndarray) and any(segment.owns(array) for segment in self._segments):
            raise RuntimeError(f"an array of shape {array.shape} was released more often than it was held")

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Free, if the context is left by an error, all that was taken in it: who holds that is gone.

        What was held before stays so, by as many as hold it then.
        """
        before = dict(self._live)
        try:
            yield
        except BaseException:
            for key, holding in list(self._live.items()):
                if before.get(key) is not holding:
                    self._free(holding)
            raise

    def _free(self, holding: _Holding) -> None:
        nbytes = holding.buffer.nbytes
        del self._live[id(holding.buffer)]
        self.bytes_live -= nbytes
        holding.segment.join(holding.start, holding.start + nbytes)

    def count(self, array: np.ndarray) -> int:
        """Return how many hold an array of the pool; 0 if it came from elsewhere."""
        holding = self._live.get(id(array.base))
        return holding.count if holding else 0

    def _cut(self, nbytes: int) -> tuple[_Segment, int, np.ndarray]:
        """Return a buffer, from the first hole that is large enough."""
        for segment in self._segments:
            found = segment.cut(nbytes)
            if found:
                return segment, *found
        try:
            self._segments.append(_Segment(max(nbytes, _SEGMENT_BYTES)))
        except InputError:  # the system limits addresses too (ulimit -v)
            self._segments.append(_Segment(nbytes))
        return self._cut(nbytes)
