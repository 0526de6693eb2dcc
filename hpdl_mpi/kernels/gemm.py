"""Matrix products, blocked for the caches (Goto and van de Geijn, 2008).

The result is cut into tiles that fit into vector registers; `kernels.vector` computes one. The sum behind an element is
cut into runs, the same for all elements, and each run is added up in order. So an element's bits depend on its row of
op(a), its column of op(b) and what it held before, and on nothing else: not on where it lies in the matrix, on how
large that is, on the number of threads, or on how wide the processor's vectors are.
"""

from __future__ import annotations

import numpy as np
from numba import prange, types
from numba.extending import intrinsic

from hpdl_mpi.kernels.jit import inline, kernel, parallel_kernel, thread_count
from hpdl_mpi.kernels.vector import (
    ROWS,
    VECTOR_BYTES,
    VECTORS,
    memory_of,
    multiply_panel,
    stack_array,
    transpose_square,
)

_DEPTH_BYTES = 2048
"""Of one row of op(a), in a run: the panel of op(b) then leaves room in the second-level cache."""

_PANEL_BYTES = _DEPTH_BYTES // 4 * VECTORS * VECTOR_BYTES

_BLOCK_TILES = 192
"""Tiles below one another that meet a panel before the next is packed: so that packing costs little beside."""

_GATHERED_TILES = 48
"""The same where op(a) is gathered from columns of a."""

_GATHERED_STRIDE = _GATHERED_TILES * ROWS + 16
"""From one gathered column to the next: with a power of two they would meet in a few sets of the cache."""

_panel_array = stack_array(_PANEL_BYTES)
_gathered_array = stack_array(_DEPTH_BYTES * _GATHERED_STRIDE)
_multiply_wide, _multiply_double, _multiply_single = multiply_panel(VECTORS), multiply_panel(2), multiply_panel(1)


@intrinsic
def _check(typing_context, a, b, c):
    """Refuse, while compiling, matrices of several dtypes or with rows that are not contiguous."""
    if c.dtype not in (types.float32, types.float64):
        raise TypeError(f"gemm takes float32 or float64 arrays, not {c.dtype}")
    if not a.dtype == b.dtype == c.dtype or "F" in (a.layout, b.layout, c.layout):
        raise TypeError(f"gemm takes matrices of one dtype with contiguous rows, not {a}, {b}, {c}")
    return types.void(a, b, c), lambda context, builder, signature, arguments: context.get_dummy_value()


@kernel
def _gather(source, place, size, target, stride):
    """target[i stride + j] = the element i, j of `source`, for i, j in `size`; the rest of `target` stays."""
    for i in range(size[0]):
        start = place[0] + i * place[1]
        row = source[start : start + size[1]]
        copy = target[i * stride : i * stride + size[1]]
        for j in range(row.size):
            copy[j] = row[j]


@kernel
def _pack_transposed(source, place, size, panel, width):
    """panel[j width + i] = the element i, j of `source`, for i, j in `size`."""
    lanes = VECTOR_BYTES // source.itemsize
    for i in range(0, size[0], lanes):
        for j in range(0, size[1], lanes):
            corner = place[0] + i * place[1] + j, place[1]
            transpose_square(source, corner, (size[0] - i, size[1] - j), panel, (j * width + i, width))


@kernel
def _gemm(a, a_row, b, b_row, c, c_row, k, flags, rows, columns):
    """Compute c[rows, columns]; matrices are flat arrays with the distance of their rows. See `gemm_part`."""
    trans_a, trans_b, add = flags
    lanes = VECTOR_BYTES // c.itemsize
    panel = _panel_array(c)
    gathered = _gathered_array(c)
    left, stride = a, np.int64(_GATHERED_STRIDE)
    # columns of a that are not far apart are as good where they lie
    gather = trans_a and a_row > _GATHERED_STRIDE
    runs = -(-k * c.itemsize // _DEPTH_BYTES)
    tiles = -(-(rows[1] - rows[0]) // ROWS)
    blocks = -(-tiles // (_GATHERED_TILES if gather else _BLOCK_TILES))
    for run in range(runs):
        t = run * k // runs
        depth = (run + 1) * k // runs - t
        for block in range(blocks):
            i = rows[0] + block * tiles // blocks * ROWS
            height = min(rows[1], rows[0] + (block + 1) * tiles // blocks * ROWS) - i
            if gather:
                _gather(a, (t * a_row + i, a_row), (depth, height), gathered, stride)
                left, left_place = gathered, (0, 1, _GATHERED_STRIDE)
            elif trans_a:
                left_place = t * a_row + i, 1, a_row
            else:
                left_place = i * a_row + t, a_row, 1
            j = columns[0]
            while j < columns[1]:
                vectors = -(-(columns[1] - j) // lanes)
                vectors = VECTORS if vectors >= VECTORS else min(vectors, 2)
                width = vectors * lanes
                size = height, min(width, columns[1] - j)
                if trans_b:
                    _pack_transposed(b, (j * b_row + t, b_row), (size[1], depth), panel, width)
                else:
                    _gather(b, (t * b_row + j, b_row), (depth, size[1]), panel, width)
                place = i * c_row + j, c_row
                plus = add or run > 0
                if vectors == VECTORS:
                    _multiply_wide(depth, left, left_place, panel, c, place, size, plus)
                elif vectors == 2:
                    _multiply_double(depth, left, left_place, panel, c, place, size, plus)
                else:
                    _multiply_single(depth, left, left_place, panel, c, place, size, plus)
                j += width


@inline
def _share(size, part, parts):
    """Return start and stop of one of `parts` shares of a length; typed, since Numba compiles anew for a plain 0."""
    return np.int64(part * size // parts), np.int64((part + 1) * size // parts)


@inline
def gemm_part(a, b, c, trans_a, trans_b, add, part, parts):
    """Compute one of `parts` shares of c = op(a) @ op(b), plus c with `add`; shares lie along c's longer side.

    Parameters
    ----------
    a, b, c : array, 2-d
        The same float dtype, rows contiguous. Shapes after `op`: (m, k), (k, n), (m, n).
    trans_a, trans_b : bool
        Whether `op` transposes.
    add : bool
        Without it c is overwritten, whatever it holds, NaN too.
    part, parts : int
    """
    _check(a, b, c)
    m, n = c.shape
    down = m >= n
    rows = _share(m, part if down else 0, parts if down else 1)
    columns = _share(n, 0 if down else part, 1 if down else parts)
    k = a.shape[0] if trans_a else a.shape[1]
    if k == 0 and not add:
        c[rows[0] : rows[1], columns[0] : columns[1]] = 0
    a_row, b_row, c_row = a.strides[0] // a.itemsize, b.strides[0] // b.itemsize, c.strides[0] // c.itemsize
    a_memory, b_memory, c_memory = memory_of(a), memory_of(b), memory_of(c)
    # Numba would compile anew for a flag that a caller writes as True or False
    flags = bool(trans_a), bool(trans_b), bool(add)
    _gemm(a_memory, a_row, b_memory, b_row, c_memory, c_row, k, flags, rows, columns)


@inline
def gemm(a, b, c, trans_a, trans_b, add):
    """c = op(a) @ op(b), plus c with `add`, on the calling thread; see `gemm_part`."""
    gemm_part(a, b, c, trans_a, trans_b, add, np.int64(0), np.int64(1))


@parallel_kernel
def _matmul(a, b, c, trans_a, trans_b, add, parts):
    for part in prange(parts):
        gemm_part(a, b, c, trans_a, trans_b, add, part, parts)


def matmul(a, b, c, *, trans_a: bool = False, trans_b: bool = False, accumulate: bool = False) -> None:
    """c = op(a) @ op(b), or c += with `accumulate`, on this process's threads; see `gemm_part`."""
    _matmul(a, b, c, trans_a, trans_b, accumulate, thread_count())
