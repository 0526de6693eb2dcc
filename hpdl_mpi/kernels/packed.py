"""Matrices packed once for many products: the right-hand sides of `kernels.gemm` where they stay the same.

A packed matrix is [run][panel][term][lane]: the sum behind an element is cut into runs, as there; of a run's terms a
panel has a few vectors of columns (`panel_vectors`), and there is room for `packed_terms` of them.
"""

from __future__ import annotations

import math
from collections.abc import Hashable

import numpy as np
from numba import prange

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.base.memory import aligned, spare
from hpdl_mpi.kernels.emit import memory_of
from hpdl_mpi.kernels.jit import inline, kernel, parallel_kernel, thread_count
from hpdl_mpi.kernels.panels import multiply_terms, onto_itself, pack_terms, packed_terms, runs_of, terms_of
from hpdl_mpi.kernels.processor import VECTOR_BYTES
from hpdl_mpi.kernels.vector import ROWS, VECTORS

_PART_OF_SPARE = 0.25
"""Of memory, for packed weights: they are worth some time, and a run needs the rest more."""


def packed_shape(depth: int, columns: int, itemsize: int) -> tuple[int, int]:
    """Return the shape of what `pack` makes of a matrix of so many rows and columns: its runs, in whole vectors."""
    lanes = VECTOR_BYTES // itemsize
    return runs_of(depth, itemsize) * packed_terms(depth, itemsize), -(-columns // lanes) * lanes


@inline
def _pack_part(b, trans_b, packed, part, parts):
    """Pack one of `parts` shares of the columns."""
    depth, columns = (b.shape[1], b.shape[0]) if trans_b else b.shape
    b_row, flat, target = b.strides[0] // b.itemsize, memory_of(b), packed.reshape(-1)
    strip = VECTORS * (VECTOR_BYTES // b.itemsize)
    strips = -(-columns // strip)
    first, last = part * strips // parts * strip, min(columns, (part + 1) * strips // parts * strip)
    room, runs = packed_terms(depth, b.itemsize), runs_of(depth, b.itemsize)
    for run in range(runs):
        panels = target[run * room * packed.shape[1] + first * room :]
        pack_terms(flat, b_row, bool(trans_b), terms_of(depth, runs, run), room, (first, last), panels)


@kernel
def pack(b, trans_b, packed):
    """Write op(b) as `multiply_packed` takes it, on the calling thread.

    Parameters
    ----------
    b : array, 2-d
        The elements of a row lie side by side; rows may lie apart.
    trans_b : bool
        Whether `op` transposes.
    packed : array, of `packed_shape`
        Written. It begins where a vector may, at a multiple of 64 bytes.
    """
    _pack_part(b, trans_b, packed, np.int64(0), np.int64(1))


@parallel_kernel
def _pack(b, trans_b, packed, parts):
    """Do as `pack`, on this process's threads."""
    for part in prange(parts):
        _pack_part(b, trans_b, packed, part, parts)


@kernel
def multiply_packed(a, packed, c, add):
    """c = a @ what was packed, plus c with `add`, on the calling thread.

    Each element's bits are the same wherever its row lies, and however many there are.

    Parameters
    ----------
    a : array, shape (rows, depth)
        The elements of a row lie side by side; rows may lie apart.
    packed : array
        Of `pack`.
    c : array, shape (rows, columns)
        Likewise; it must not overlap the others.
    add : bool
    """
    rows, depth = a.shape
    a_row, c_row = a.strides[0] // a.itemsize, c.strides[0] // c.itemsize
    a_memory, c_memory, panels = memory_of(a), memory_of(c), packed.reshape(-1)
    place, size = (np.int64(0), np.int64(c_row)), (np.int64(rows), np.int64(c.shape[1]))
    room, runs = packed_terms(depth, c.itemsize), runs_of(depth, c.itemsize)
    for run in range(runs):
        start, stop = terms_of(depth, runs, run)
        a_place = np.int64(start), np.int64(a_row), np.int64(1), np.int64(ROWS * a_row)
        added = onto_itself(c_memory, place, bool(add or run > 0))
        here = panels[run * room * packed.shape[1] :]
        multiply_terms((np.int64(0), stop - start), room, a_memory, a_place, here, c_memory, place, size, added)


class PackedWeights:
    """Weights that `matmul` finds packed, for as many products as come between two updates of them.

    Each takes the memory of a weight once more for each side that products take it from; all together take no more than
    a quarter of the memory that is `spare`.

    Parameters
    ----------
    processes : int
        Of this machine that pack as much, this one among them.

    Attributes
    ----------
    nbytes : int
        The memory that packed weights take.
    """

    def __init__(self, processes: int = 1) -> None:
        self.nbytes = 0
        self._processes = processes
        self._packed: dict[Hashable, tuple[np.ndarray, bool, np.ndarray]] = {}
        self._refused: set[Hashable] = set()
        self._current: set[Hashable] = set()
        self._asked: set[Hashable] = set()

    def renew(self) -> int:
        """Note that weights may be others from now on, but not before the next call; return how many are packed again.

        These are what was asked for since the last call.
        """
        self._current, self._asked = self._asked, self._current
        self._asked.clear()
        for key in self._current:
            _pack(*self._packed[key], thread_count())
        return len(self._current)

    def find(self, b: np.ndarray, trans_b: bool) -> np.ndarray | None:
        """Return op(b), packed, of `packed_shape`, or None for lack of memory; always the same array for the same b.

        b is a weight, whose memory is its own: another matrix there would be taken for it.
        """
        key = b.__array_interface__["data"][0], b.shape, b.strides, b.dtype, trans_b
        if key not in self._packed and (key in self._refused or not self._make_room(key, b, trans_b)):
            return None
        self._asked.add(key)
        if key not in self._current:
            _pack(*self._packed[key], thread_count())
            self._current.add(key)
        return self._packed[key][2]

    def clear(self) -> None:
        """Give back the memory of all packed weights."""
        for kept in (self._packed, self._refused, self._current, self._asked):
            kept.clear()
        self.nbytes = 0

    def _make_room(self, key: Hashable, b: np.ndarray, trans_b: bool) -> bool:
        """Return whether there is room for op(b)."""
        depth, columns = b.shape[::-1] if trans_b else b.shape
        shape = packed_shape(depth, columns, b.itemsize)
        nbytes = self.nbytes + math.prod(shape) * b.itemsize
        if nbytes <= (spare(self._processes) + self.nbytes) * _PART_OF_SPARE:
            try:
                self._packed[key] = b, trans_b, aligned(shape, b.dtype)
            except InputError:
                pass  # the system counts otherwise; products do without
            else:
                self.nbytes = nbytes
                return True
        self._refused.add(key)
        return False
