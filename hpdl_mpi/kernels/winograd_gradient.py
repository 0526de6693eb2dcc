"""The gradient of the weight by Winograd's method; see `kernels.winograd`.

Each thread adds up its own part of the tiles, always the same ones: so a rerun gives the same bits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import prange

from hpdl_mpi.kernels.blocks import block_of, plane, prefetch_to_read, share_of, summed_tiles, worth_sums_of_columns
from hpdl_mpi.kernels.emit import memory_of
from hpdl_mpi.kernels.gemm import gemm, workspace
from hpdl_mpi.kernels.image_tiles import filter_of, gradient_values, input_values, tiles_of
from hpdl_mpi.kernels.jit import kernel, parallel_kernel, thread_count
from hpdl_mpi.kernels.schemes import Scheme, transposed
from hpdl_mpi.kernels.tickets import take_ticket, tickets
from hpdl_mpi.kernels.tiles import tile_transform
from hpdl_mpi.kernels.winograd_panels import GROUP_BYTES

_transform_back = tile_transform("back", lambda scheme: transposed(scheme.FILTER), adds=True)


class _Room(NamedTuple):
    """How scratch is divided, as for a convolution; `sums` are the gradient at the points."""

    by_columns: bool
    block: int
    columns: int
    values: int
    gradients: int
    sums: int
    own: int
    shared: int


def _room(scheme: Scheme, channels: int, dy_shape: tuple[int, ...], itemsize: int) -> _Room:
    columns, tiles = dy_shape[3], scheme.count(dy_shape)
    points, filters = scheme.points**2, scheme.filters**2
    sum_bytes, tile_bytes = filters * channels * columns * itemsize, points * (channels + columns) * itemsize
    by_columns = worth_sums_of_columns(sum_bytes, tiles * tile_bytes)
    block = tiles if by_columns else min(tiles, summed_tiles(sum_bytes))
    width = _columns_at_once(columns, itemsize) if by_columns else columns
    values, gradients = plane(block * channels, itemsize), plane(block * columns, itemsize)
    sums = filters * width * channels
    of_tiles = points * (values + gradients)
    own, shared = (sums, of_tiles) if by_columns else (sums + of_tiles, 0)
    return _Room(by_columns, block, width, values, gradients, sums, own, shared)


def _columns_at_once(columns: int, itemsize: int) -> int:
    """Return how many columns go together: more need more scratch, fewer pack the values more often."""
    one = GROUP_BYTES // itemsize
    return min(columns, 2 * one if columns >= 2 * one * thread_count() else one)


def scratch_size(scheme: Scheme, channels: int, dy_shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Return the elements of `scratch` for a weight's gradient."""
    room = _room(scheme, channels, dy_shape, dtype.itemsize)
    return room.shared + thread_count() * room.own


def num_parts(scheme: Scheme, channels: int, dy_shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Return in how many parts `backward_weight` computes a gradient."""
    return 1 if _room(scheme, channels, dy_shape, dtype.itemsize).by_columns else thread_count()


@kernel
def _add_back(scheme, sums, dweight, first, last):
    """Add the gradient at the points, (filters^2, last - first, c), to some kernels of that of the weight."""
    _, r, _, channels = dweight.shape
    flat = dweight.reshape(-1)
    every = np.int64(0), np.int64(scheme.filters), np.int64(0), np.int64(scheme.filters)
    plane = (last - first) * channels
    for k in range(first, last):
        source = (k - first) * channels, scheme.filters * plane, plane
        target = k * r * r * channels, r * channels, channels
        _transform_back(scheme, sums, source, every, flat, target, (r, r), channels, flat)


@kernel
def _correlate(scheme, values, values_plane, gradients, gradients_plane, sizes, columns, add, workspace, sums, later):
    """Multiply gradients with values at each point, and add up over `sizes[0]` tiles; see `_multiply_points`.

    `sizes` are numbers of tiles, of channels of the gradients, and of the values; `columns` the first and the last + 1
    of the gradients' channels that are wanted.
    """
    count, width, channels = sizes
    points = scheme.points * scheme.points
    plane = (columns[1] - columns[0]) * channels
    for point in range(points):
        for memory in later:
            prefetch_to_read(memory[0], *share_of(memory, point, points))
        a = gradients[point * gradients_plane : point * gradients_plane + count * width].reshape(count, width)
        b = values[point * values_plane : point * values_plane + count * channels].reshape(count, channels)
        number = filter_of(scheme, point)
        c = sums[number * plane : (number + 1) * plane].reshape(columns[1] - columns[0], channels)
        again = point // scheme.points >= scheme.filters or point % scheme.points >= scheme.filters
        gemm(a[:, columns[0] : columns[1]], b, c, True, False, add or again, workspace)


@parallel_kernel
def _correlate_blocks(scheme, x, dy, padding, block, planes, workspaces, scratch, num_sums, dweights):
    tiles = tiles_of(scheme, dy)
    total = len(dy) * tiles[0] * tiles[1]
    parts = len(scratch)
    for part in prange(parts):
        start, stop = part * total // parts, (part + 1) * total // parts
        blocks = -(-(stop - start) // block)
        size = num_sums + scheme.points * scheme.points * planes[0]
        sums, values, gradients = scratch[part, :num_sums], scratch[part, num_sums:size], scratch[part, size:]
        x_memory, dy_memory = memory_of(x), memory_of(dy)
        for number in range(blocks):
            first, last = block_of(number, blocks, start, stop)
            _, following = block_of(number + 1, blocks, start, stop)
            later = (
                (x_memory, last * x.size // total, following * x.size // total),
                (dy_memory, last * dy.size // total, following * dy.size // total),
            )
            input_values(scheme, x, padding, tiles, first, last, planes[0], values)
            gradient_values(scheme, dy, tiles, first, last, planes[1], gradients)
            sizes, columns = (last - first, dy.shape[3], x.shape[3]), (np.int64(0), dy.shape[3])
            _correlate(
                scheme,
                values,
                planes[0],
                gradients,
                planes[1],
                sizes,
                columns,
                number > 0,
                workspaces[part],
                sums,
                later,
            )
        if blocks > 0:
            _add_back(scheme, sums, dweights[part], np.int64(0), dy.shape[3])


@parallel_kernel
def _correlate_columns(scheme, x, dy, padding, width, planes, tickets, workspaces, values, gradients, scratch, dweight):
    columns, channels = dy.shape[3], x.shape[3]
    tiles = tiles_of(scheme, dy)
    total = len(dy) * tiles[0] * tiles[1]
    groups = -(-columns // width)
    parts = len(scratch)
    for part in prange(parts):
        first, last = part * total // parts, (part + 1) * total // parts
        input_values(scheme, x, padding, tiles, first, last, planes[0], values[first * channels :])
        gradient_values(scheme, dy, tiles, first, last, planes[1], gradients[first * columns :])
    for part in prange(parts):
        nothing = memory_of(dweight), np.int64(0), np.int64(0)
        group = take_ticket(tickets)
        while group < groups:
            first = group * width
            last = min(first + width, columns)
            _correlate(
                scheme,
                values,
                planes[0],
                gradients,
                planes[1],
                (total, columns, channels),
                (first, last),
                False,
                workspaces[part],
                scratch[part],
                (nothing, nothing),
            )
            _add_back(scheme, scratch[part], dweight, first, last)
            group = take_ticket(tickets)


def backward_weight(scheme, x, dy, padding, scratch, dweights) -> None:
    """dweights[t] += a part of the gradient for the weight of `winograd.forward`; the sum of the parts is all of it.

    Parameters
    ----------
    scheme : Scheme
    x : array, shape (n, h, w, c)
    dy : array, shape (n, ho, wo, k)
    padding : (int, int)
        Vertical and horizontal.
    scratch : flat array, of `scratch_size(scheme, c, dy.shape, dy.dtype)`
        Aligned to vectors; its content is lost.
    dweights : array, shape (num_parts(scheme, c, dy.shape, dy.dtype), k, r, r, c)
        Added to.
    """
    threads = thread_count()
    room = _room(scheme, x.shape[3], dy.shape, dy.itemsize)
    shared, own = scratch[: room.shared], scratch[room.shared :].reshape(threads, room.own)
    planes = room.values, room.gradients
    workspaces = workspace(dy.dtype)
    if room.by_columns:
        split = scheme.points**2 * room.values
        of_tiles = shared[:split], shared[split:]
        places = tickets(), workspaces, *of_tiles, own, dweights[0]
        _correlate_columns(scheme, x, dy, padding, room.columns, planes, *places)
    else:
        _correlate_blocks(scheme, x, dy, padding, room.block, planes, workspaces, own, room.sums, dweights)
