"""Convolution with kernels of 3 x 3, of stride 1 or 2, or 5 x 5 by Winograd's method (Lavin and Gray, 2016).

The output is cut into tiles. The tile of the image that such a tile depends on and the kernel are transformed to their
values at some points, see `kernels.schemes`; there they are multiplied, and the products transformed back: for tiles of
4 x 4 under a kernel of 3 x 3 that is 36 products instead of 144. For each point the products of all tiles, channels and
kernels are one product of matrices, for which `kernels.gemm` has the means. The gradient of the input is a convolution
with the kernels turned round; the gradient of the weight has the three transforms exchanged.

Tiles go by blocks whose values stay in the cache. While a block is multiplied, which is all arithmetic, the processor
fetches what the block's output will be written to and what the next block reads. Where the weights at the points are
much more than a cache holds, and the tiles are not, it is the other way round: the values of all tiles are kept, and
columns of the weights go by groups, whose panels never reach memory. A thread takes the blocks of its own share of the
images, which it has written itself in the layer before, and then what others have left of theirs; groups are taken in
turn. So none waits long for one that is held up, and no result depends on who computed it.

The price is accuracy: transforms add and subtract multiples of numbers that are near one another. In float32 the error
is about ten times that of a sum in order; `tests/unit/kernels/test_winograd.py` derives its bound.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import prange

from hpdl_mpi.kernels.blocks import (
    block_of,
    block_tiles,
    num_blocks,
    plane,
    prefetch_to_read,
    prefetch_to_write,
    share_of,
    worth_columns,
)
from hpdl_mpi.kernels.emit import memory_of
from hpdl_mpi.kernels.image_tiles import filter_of, input_values, tiles_of, write_outputs
from hpdl_mpi.kernels.jit import kernel, parallel_kernel, thread_count
from hpdl_mpi.kernels.panels import multiply_panels
from hpdl_mpi.kernels.processor import VECTOR_BYTES
from hpdl_mpi.kernels.schemes import SCHEMES, Scheme, StridedBack
from hpdl_mpi.kernels.tickets import take_ticket, tickets
from hpdl_mpi.kernels.vector import ROWS
from hpdl_mpi.kernels.winograd_panels import GROUP_BYTES, make_panels, make_share_of_panels, transposed_size


def best_scheme(
    kernel_size: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], output: tuple[int, int]
) -> Scheme | None:
    """Return the scheme that takes the fewest products for an output of this height and width, if there is any."""
    if len({*kernel_size}) > 1 or len({*stride}) > 1 or (stride != (1, 1) and padding != (1, 1)):
        return None
    return min(SCHEMES.get((kernel_size[0], stride[0]), ()), key=lambda scheme: scheme.products(*output), default=None)


class _Room(NamedTuple):
    """How a convolution's scratch is divided; what is not a number of tiles is one of elements.

    Attributes
    ----------
    by_columns : bool
        Whether columns go by groups, rather than tiles by blocks.
    block : int
        Tiles that are multiplied at once.
    values, products, filters : int
        How far apart the numbers of two points lie.
    transposed, own, shared : int
        For transposed weights, all that each thread has, and what threads share.
    """

    by_columns: bool
    block: int
    values: int
    products: int
    filters: int
    transposed: int
    own: int
    shared: int


def _padded(columns: int, itemsize: int) -> int:
    lanes = VECTOR_BYTES // itemsize
    return -(-columns // lanes) * lanes


def _room(scheme: Scheme, depth: int, y_shape: tuple[int, ...], itemsize: int) -> _Room:
    columns, tiles = y_shape[3], scheme.count(y_shape)
    points, filters = scheme.points**2, scheme.filters**2
    weight_bytes = filters * depth * columns * itemsize
    by_columns = worth_columns(weight_bytes, points * tiles * depth * itemsize)
    block = tiles if by_columns else min(tiles, block_tiles(weight_bytes, points * (depth + columns) * itemsize))
    width = min(columns, GROUP_BYTES // itemsize) if by_columns else columns
    values, products = plane(block * depth, itemsize), plane(block * width, itemsize)
    filters_plane = plane(depth * _padded(width, itemsize), itemsize)
    turned = transposed_size(scheme.kernel, depth, itemsize)
    shared, own = points * values, turned + points * products
    if by_columns:
        own += filters * filters_plane
    else:
        shared, own = filters * filters_plane, own + shared
    return _Room(by_columns, block, values, products, filters_plane, turned, own, shared)


def scratch_size(scheme: Scheme, depth: int, y_shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Return the elements of `scratch` for a convolution of an image of so many channels to one of a shape."""
    room = _room(scheme, depth, y_shape, dtype.itemsize)
    return room.shared + thread_count() * room.own


@kernel
def _multiply_points(
    scheme, values, values_plane, count, panels, panels_plane, depth, products, products_plane, columns, soon, later
):
    """Multiply the values of `count` tiles with the weights at each point, and fetch memory meanwhile.

    `soon` and `later` are flat arrays with a start and a stop: what is written when this is done, what is read then.
    """
    points = scheme.points * scheme.points
    for point in range(points):
        prefetch_to_write(soon[0], *share_of(soon, point, points))
        prefetch_to_read(later[0], *share_of(later, point, points))
        weights = panels[filter_of(scheme, point) * panels_plane :]
        left, target = (point * values_plane, depth, 1, ROWS * depth), (point * products_plane, columns)
        multiply_panels(depth, values, left, weights, products, target, (count, columns), False)


@parallel_kernel
def _convolve_blocks(scheme, x, weight, turned, bias, padding, blocks, tickets, planes, transposed, panels, scratch, y):
    depth, columns = x.shape[3], y.shape[3]
    tiles = tiles_of(scheme, y)
    total = len(y) * tiles[0] * tiles[1]
    parts = len(scratch)
    for part in prange(parts):
        make_share_of_panels(scheme, weight, turned, columns, part, parts, transposed[part], panels, planes[2])
    for part in prange(parts):
        size = scheme.points * scheme.points * planes[0]
        values, products = scratch[part, :size], scratch[part, size:]
        x_memory, y_memory = memory_of(x), memory_of(y)
        for turn in range(parts):
            roll = (part + turn) % parts
            start, stop = roll * blocks // parts, (roll + 1) * blocks // parts
            number = start + take_ticket(tickets[roll:])
            while number < stop:
                first, last = block_of(number, blocks, np.int64(0), total)
                later, end = block_of(number + 1, blocks, np.int64(0), total)  # probably this thread's next
                input_values(scheme, x, padding, tiles, first, last, planes[0], values)
                _multiply_points(
                    scheme,
                    values,
                    planes[0],
                    last - first,
                    panels,
                    planes[2],
                    depth,
                    products,
                    planes[1],
                    columns,
                    (y_memory, first * y.size // total, last * y.size // total),
                    (x_memory, later * x.size // total, end * x.size // total),
                )
                write_outputs(scheme, products, planes[1], bias, tiles, first, last, (np.int64(0), columns), y)
                number = start + take_ticket(tickets[roll:])


@parallel_kernel
def _convolve_columns(scheme, x, weight, turned, bias, padding, tickets, planes, transposed, values, scratch, y):
    depth, columns = x.shape[3], y.shape[3]
    tiles = tiles_of(scheme, y)
    total = len(y) * tiles[0] * tiles[1]
    width = GROUP_BYTES // y.itemsize
    groups = -(-columns // width)
    parts = len(scratch)
    for part in prange(parts):
        first, last = part * total // parts, (part + 1) * total // parts
        input_values(scheme, x, padding, tiles, first, last, planes[0], values[first * depth :])
    for part in prange(parts):
        size = scheme.filters * scheme.filters * planes[2]
        panels, products = scratch[part, :size], scratch[part, size:]
        nothing = memory_of(y), np.int64(0), np.int64(0)
        group = take_ticket(tickets)
        while group < groups:
            first = group * width
            last = min(first + width, columns)
            make_panels(scheme, weight, turned, first, last - first, transposed[part], panels, np.int64(0), planes[2])
            _multiply_points(
                scheme,
                values,
                planes[0],
                total,
                panels,
                planes[2],
                depth,
                products,
                planes[1],
                last - first,
                nothing,
                nothing,
            )
            write_outputs(scheme, products, planes[1], bias, tiles, np.int64(0), total, (first, last), y)
            group = take_ticket(tickets)


def _convolve(scheme, x, weight, turned, bias, padding, scratch, y) -> None:
    """y = convolution of x with weight, (k, r, r, c), or `turned` with weight turned round, (c, r, r, k)."""
    threads = thread_count()
    room = _room(scheme, x.shape[3], y.shape, y.itemsize)
    shared, own = scratch[: room.shared], scratch[room.shared :].reshape(threads, room.own)
    rows, own = own[:, : room.transposed], own[:, room.transposed :]
    planes = room.values, room.products, room.filters
    if room.by_columns:
        _convolve_columns(scheme, x, weight, turned, bias, padding, tickets(), planes, rows, shared, own, y)
    else:
        blocks = num_blocks(scheme.count(y.shape), room.block, threads)
        places = tickets(threads), planes, rows, shared, own
        _convolve_blocks(scheme, x, weight, turned, bias, padding, blocks, *places, y)


def forward(scheme, x, weight, bias, padding, scratch, y) -> None:
    """y = convolution of x with weight, plus bias.

    Parameters
    ----------
    scheme : Scheme
    x : array, shape (n, h, w, c)
    weight : array, shape (k, r, r, c)
    bias : array, shape (k,) or (0,)
    padding : (int, int)
        Vertical and horizontal.
    scratch : flat array, of `scratch_size(scheme, c, y.shape, y.dtype)`
        Aligned to vectors; its content is lost.
    y : array, shape (n, ho, wo, k)
        Written.
    """
    _convolve(scheme, x, weight, False, bias, padding, scratch, y)


def back_of(scheme: Scheme) -> Scheme:
    """Return the scheme that `backward_input` goes by."""
    return StridedBack.of(4) if (scheme.kernel, 2) in SCHEMES and scheme in SCHEMES[scheme.kernel, 2] else scheme


def backward_input(scheme, dy, weight, padding, scratch, dx) -> None:
    """dx = gradient for the input of `forward`.

    Parameters
    ----------
    scheme : Scheme
        Of `forward`.
    dy : array, shape (n, ho, wo, k)
    weight : array, shape (k, r, r, c)
    padding : (int, int)
        Of `forward`.
    scratch : flat array, of `scratch_size(back_of(scheme), k, dx.shape, dx.dtype)`
        Aligned to vectors; its content is lost.
    dx : array, shape (n, h, w, c)
        Written.
    """
    back = back_of(scheme)
    if back is scheme:
        padding = scheme.kernel - 1 - padding[0], scheme.kernel - 1 - padding[1]
    else:
        padding = 0, 0
    _convolve(back, dy, weight, True, scratch[:0], padding, scratch, dx)
