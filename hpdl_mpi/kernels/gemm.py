"""Matrix products, blocked for the caches (Goto and van de Geijn, 2008).

The result is cut into tiles that fit into vector registers; `kernels.vector` computes one. The sum behind an element is
cut into runs, the same for all elements, and each run is added up in order. So an element's bits depend on its row of
op(a), its column of op(b) and what it held before, and on nothing else: not on where it lies in the matrix, on how
large that is, on the number of threads, or on how wide the processor's vectors are (but on whether it can round a
product and a sum at once, as those of the last ten years do).
"""

from __future__ import annotations

import threading
from typing import Protocol

import numpy as np
from numba import prange

from hpdl_mpi.base.memory import aligned
from hpdl_mpi.kernels.emit import memory_of
from hpdl_mpi.kernels.jit import exact_kernel, inline, kernel, parallel_kernel, thread_count
from hpdl_mpi.kernels.matvec import FEW, multiply_few
from hpdl_mpi.kernels.panels import (
    DEPTH_BYTES,
    copy_rows,
    multiply_terms,
    onto_itself,
    pack_terms,
    packed_terms,
    runs_of,
    terms_of,
)
from hpdl_mpi.kernels.processor import VECTOR_BYTES
from hpdl_mpi.kernels.recording import replayed
from hpdl_mpi.kernels.vector import ROWS, VECTORS

_DTYPES = (np.float32, np.float64)

_PACKED_BYTES = 2 * 1024 * 1024
"""Of panels that a thread packs at once. They wait in the third-level cache, where it has so much for each core."""

_BLOCK_ROWS = 22 * ROWS
"""That meet all these panels before the next rows: they stay in the second-level cache."""

_PACKED_UP_TO = 768
"""Rows of a, for which a matrix that was packed before is worth a look: to pack it takes longer than to fetch it."""

_GATHERED_ABOVE = 192
"""Elements from row to row of a transposed a. Up to here its columns are as good where they lie as gathered."""


class _Workspaces(threading.local):
    """The workspaces of one Python thread, by dtype."""

    def __init__(self) -> None:
        self.arrays: dict[np.dtype, np.ndarray] = {}


_workspaces = _Workspaces()


def workspace(dtype: np.dtype) -> np.ndarray:
    """Return what products on each of this process's threads need beside their matrices, shape (threads, elements).

    It belongs to the calling Python thread, and every call returns the same; contents do not last from product to
    product.
    """
    found = _workspaces.arrays.get(dtype)
    if found is None or len(found) < thread_count():
        row = (_PACKED_BYTES + _BLOCK_ROWS * DEPTH_BYTES) // dtype.itemsize
        found = aligned(thread_count() * row, dtype).reshape(thread_count(), row)
        _workspaces.arrays[dtype] = found
    return found


@kernel
def _begin(c, c_row, onto, onto_row, bias, flags, rows, columns):
    """Write to c[rows, columns] what a product is to be added to, and return whether there is any."""
    add, biased = flags
    for i in range(rows[0], rows[1]):
        for j in range(columns[0], columns[1]):
            start = onto[i * onto_row + j] if add else c.dtype.type(0)
            c[i * c_row + j] = start + bias[j] if biased else start
    return add or biased


@exact_kernel
def _gemm(a, a_row, b, b_row, c, c_row, onto, onto_row, bias, k, flags, rows, columns, workspace):
    """Compute c[rows, columns]; matrices are flat arrays with the distance of their rows. See `gemm_part`."""
    trans_a, trans_b, add, biased, packed = flags
    if k == 0:
        _begin(c, c_row, onto, onto_row, bias, (add, biased), rows, columns)
        return
    lanes = VECTOR_BYTES // c.itemsize
    full = VECTORS * lanes
    panels = workspace[: _PACKED_BYTES // c.itemsize]
    gathered = workspace[_PACKED_BYTES // c.itemsize :]
    gather = trans_a and a_row > _GATHERED_ABOVE
    left = gathered if gather else a
    height = rows[1] - rows[0]
    runs = runs_of(k, c.itemsize)
    if height <= FEW and not trans_a and not packed and (height == 1 or not trans_b):
        b_place = (columns[0] * b_row if trans_b else columns[0]), b_row
        a_place, c_place = (rows[0] * a_row, a_row), (rows[0] * c_row + columns[0], c_row)
        size = height, columns[1] - columns[0]
        begun = _begin(c, c_row, onto, onto_row, bias, (add, biased), rows, columns)
        multiply_few((k, runs), a, a_place, b, b_place, trans_b, c, c_place, size, begun, panels)
        return
    tiles = -(-height // ROWS)
    blocks = -(-height // _BLOCK_ROWS)
    strips = -(-(columns[1] - columns[0]) // full)
    room = packed_terms(k, c.itemsize)
    for run in range(runs):
        t, behind = terms_of(k, runs, run)
        depth = behind - t
        groups = strips if height <= FEW else -(-strips // (panels.size // (room * full)))
        for group in range(groups):
            j = columns[0] + group * strips // groups * full
            width = min(columns[1], columns[0] + (group + 1) * strips // groups * full) - j
            right = panels
            if packed:
                right = b[run * room * b_row + j * room :]
            else:
                pack_terms(b, b_row, trans_b, (t, behind), room, (j, j + width), panels)
            for block in range(blocks):
                i = rows[0] + block * tiles // blocks * ROWS
                present = min(rows[1], rows[0] + (block + 1) * tiles // blocks * ROWS) - i
                if gather:
                    copy_rows(a, (t * a_row + i, a_row), (depth, present), gathered, _BLOCK_ROWS)
                    left_place = 0, 1, _BLOCK_ROWS, ROWS
                elif trans_a:
                    left_place = t * a_row + i, 1, a_row, ROWS
                else:
                    left_place = i * a_row + t, a_row, 1, ROWS * a_row
                c_place = i * c_row + j, c_row
                if run == 0:
                    added = onto, (i * onto_row + j, onto_row, add), bias, (j, biased)
                else:
                    added = onto_itself(c, c_place, True)
                terms, size = (np.int64(0), depth), (present, width)
                multiply_terms(terms, room, left, left_place, right, c, c_place, size, added)


@inline
def _share(size, part, parts):
    """Return start and stop of one of `parts` shares of a length; typed, since Numba compiles anew for a plain 0."""
    return np.int64(part * size // parts), np.int64((part + 1) * size // parts)


@inline
def gemm_part(a, b, c, onto, bias, trans_a, trans_b, packed, add, workspace, part, parts):
    """Compute one of `parts` shares of c = op(a) @ op(b), plus `onto`, plus `bias`; shares lie along c's longer side.

    Parameters
    ----------
    a, b, c : array, 2-d
        As `matmul` takes them, which checks them; c must not overlap the others.
    onto : array, like c
        It may be c itself, and is not looked at without `add`.
    bias : array, shape (n,) or (0,)
    trans_a, trans_b : bool
        Whether `op` transposes.
    packed : bool
        Whether b is what `packed.pack` made of op(b).
    add : bool
    workspace : array, flat
        A row of `workspace`.
    part, parts : int
    """
    m, n = c.shape
    down = m >= n
    rows = _share(m, part if down else 0, parts if down else 1)
    strip = VECTORS * (VECTOR_BYTES // c.itemsize) if packed else 1  # what is packed is cut between panels
    columns = _share(-(-n // strip), 0 if down else part, 1 if down else parts)
    columns = columns[0] * strip, min(n, columns[1] * strip)
    k = a.shape[0] if trans_a else a.shape[1]
    a_row, b_row, c_row = a.strides[0] // a.itemsize, b.strides[0] // b.itemsize, c.strides[0] // c.itemsize
    onto_row = onto.strides[0] // onto.itemsize
    a_memory, b_memory, c_memory, onto_memory = memory_of(a), memory_of(b), memory_of(c), memory_of(onto)
    # Numba would compile anew for a flag that a caller writes as True or False
    flags = bool(trans_a), bool(trans_b), bool(add), bias.size > 0, bool(packed)
    _gemm(
        a_memory,
        a_row,
        b_memory,
        b_row,
        c_memory,
        c_row,
        onto_memory,
        onto_row,
        bias,
        k,
        flags,
        rows,
        columns,
        workspace,
    )


@inline
def gemm(a, b, c, trans_a, trans_b, add, workspace):
    """c = op(a) @ op(b), plus c with `add`, on the calling thread; see `gemm_part`."""
    gemm_part(a, b, c, c, memory_of(c)[:0], trans_a, trans_b, False, add, workspace, np.int64(0), np.int64(1))


@parallel_kernel
def _matmul(a, b, c, onto, bias, trans_a, trans_b, packed, add, workspaces, parts):
    for part in prange(parts):
        gemm_part(a, b, c, onto, bias, trans_a, trans_b, packed, add, workspaces[part], part, parts)


def as_matrix(array: np.ndarray) -> np.ndarray:
    """Return a view of a contiguous array as a matrix, with the array's last dimension in each row."""
    return array.reshape(-1, array.shape[-1])


_NO_BIAS = {dtype: np.zeros(0, dtype) for dtype in map(np.dtype, _DTYPES)}


class Packer(Protocol):
    """Where a product may find a matrix packed; see `kernels.packed.PackedWeights`."""

    def find(self, b: np.ndarray, trans_b: bool) -> np.ndarray | None:
        """Return op(b) as `pack` makes it, or None."""


def matmul(
    a,
    b,
    c,
    *,
    trans_a: bool = False,
    trans_b: bool = False,
    accumulate=False,
    bias=None,
    packer: Packer | None = None,
) -> None:
    """c = op(a) @ op(b), or c += with `accumulate`, on this process's threads.

    Parameters
    ----------
    a, b, c : array, 2-d
        float32 or float64, all the same. Shapes after `op`: (m, k), (k, n), (m, n). The elements of a row lie side by
        side; rows may lie apart. c must not overlap the others.
    trans_a, trans_b : bool
        Whether `op` transposes.
    accumulate : bool or array, shape (m, n)
        What is added to the product: what c holds, or another array. Else c is overwritten, whatever it holds, NaN too.
    bias : array, shape (n,), optional
        Added to each row.
    packer : Packer, optional
        Asked for b, which is its weight, where a has so few rows that much of the time would be that to pack it. The
        result has the same bits.

    Raises
    ------
    TypeError
        Dtypes differ or are others.
    ValueError
        Shapes do not fit, or a matrix does not lie in memory as it must.
    """
    if c.dtype not in _DTYPES or not a.dtype == b.dtype == c.dtype:
        raise TypeError(f"a product takes float32 or float64, all the same; found {a.dtype}, {b.dtype}, {c.dtype}")
    add = not isinstance(accumulate, bool)
    onto = accumulate if add else c
    for matrix in (a, b, c, onto):
        if not _lies_in_rows(matrix):
            raise ValueError(f"a product needs rows side by side; found shape {matrix.shape}, strides {matrix.strides}")
    left, right = a.shape[::-1] if trans_a else a.shape, b.shape[::-1] if trans_b else b.shape
    if left[1] != right[0] or c.shape != (left[0], right[1]):
        raise ValueError(f"shapes {left} times {right} do not give {c.shape}")
    bias = _NO_BIAS[c.dtype] if bias is None else bias
    if onto.shape != c.shape or bias.shape not in ((0,), c.shape[1:]) or not bias.flags.c_contiguous:
        raise ValueError(f"{onto.shape} and {bias.shape} cannot be added to a product of shape {c.shape}")
    if not c.dtype == onto.dtype == bias.dtype:
        raise TypeError(f"what is added to a product of {c.dtype} is such; found {onto.dtype}, {bias.dtype}")
    found = None
    if packer is not None and FEW < c.shape[0] <= _PACKED_UP_TO:
        found = replayed(packer.find, b, trans_b)
    right, packed = (b, False) if found is None else (found, True)
    _matmul(a, right, c, onto, bias, trans_a, trans_b, packed, add or accumulate, workspace(c.dtype), thread_count())


def _lies_in_rows(matrix) -> bool:
    """Return whether an array is a matrix of aligned elements, side by side in rows that follow one another."""
    if matrix.ndim != 2 or not matrix.flags.aligned:
        return False
    rows, columns = matrix.shape
    down, right = matrix.strides
    side_by_side = columns <= 1 or right == matrix.itemsize
    one_after_another = rows <= 1 or (down >= 0 and down % matrix.itemsize == 0)
    return matrix.size == 0 or (side_by_side and one_after_another)
