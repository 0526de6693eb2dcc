"""A matrix packed once for many products: the right-hand side of `kernels.gemm` where it stays the same.

The sum behind an element is cut into runs, as there. The panels of a run follow those of the run before.
"""

from __future__ import annotations

import numpy as np

from hpdl_mpi.kernels.emit import memory_of
from hpdl_mpi.kernels.gemm import DEPTH_BYTES, multiply_panels, pack_panels
from hpdl_mpi.kernels.jit import inline, kernel
from hpdl_mpi.kernels.processor import VECTOR_BYTES
from hpdl_mpi.kernels.vector import ROWS, VECTORS


def packed_size(depth: int, columns: int, itemsize: int) -> int:
    """Return the elements that `pack` writes, at most, for a matrix of so many rows and columns.

    The last run is filled up to whole vectors of its depth, in the widest panel.
    """
    lanes = VECTOR_BYTES // itemsize
    return depth * -(-columns // lanes) * lanes + lanes * VECTORS * lanes


@inline
def _run(depth, itemsize, run):
    """Return the terms of a run: the first, and the last + 1."""
    runs = -(-depth * itemsize // DEPTH_BYTES)
    return run * depth // runs, (run + 1) * depth // runs


@kernel
def pack(b, trans_b, packed):
    """Write op(b) as `multiply_packed` takes it, on the calling thread.

    Parameters
    ----------
    b : array, 2-d, contiguous
    trans_b : bool
        Whether `op` transposes.
    packed : flat array, of `packed_size`
        Written. It begins where a vector may, at a multiple of 64 bytes.
    """
    depth, columns = (b.shape[1], b.shape[0]) if trans_b else b.shape
    lanes = VECTOR_BYTES // b.itemsize
    width = -(-columns // lanes) * lanes
    flat = b.reshape(-1)
    for run in range(-(-depth * b.itemsize // DEPTH_BYTES)):
        start, stop = _run(depth, b.itemsize, run)
        every = np.int64(0), np.int64(columns)
        pack_panels(flat, b.shape[1], bool(trans_b), (start, stop), every, packed[start * width :])


@kernel
def multiply_packed(a, packed, c, add):
    """c = a @ what was packed, plus c with `add`, on the calling thread.

    Each element's bits are the same wherever its row lies, and however many there are.

    Parameters
    ----------
    a : array, shape (rows, depth)
        The elements of a row lie side by side; rows may lie apart.
    packed : flat array
        Of `pack`.
    c : array, shape (rows, columns)
        Likewise; it must not overlap the others.
    add : bool
    """
    rows, depth = a.shape
    columns = c.shape[1]
    lanes = VECTOR_BYTES // c.itemsize
    width = -(-columns // lanes) * lanes
    a_row, c_row = a.strides[0] // a.itemsize, c.strides[0] // c.itemsize
    a_memory, c_memory = memory_of(a), memory_of(c)
    place, size = (np.int64(0), np.int64(c_row)), (np.int64(rows), np.int64(columns))
    for run in range(-(-depth * c.itemsize // DEPTH_BYTES)):
        start, stop = _run(depth, c.itemsize, run)
        a_place = np.int64(start), np.int64(a_row), np.int64(1), np.int64(ROWS * a_row)
        plus = bool(add or run > 0)
        multiply_panels(stop - start, a_memory, a_place, packed[start * width :], c_memory, place, size, plus)
