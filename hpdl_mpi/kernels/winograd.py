"""Convolution with kernels of 3 x 3 and stride 1 by Winograd's method (Lavin and Gray, 2016).

The output is cut into tiles of 4 x 4. A tile of the image, 6 x 6, and the kernel are transformed to their values at 36
points; there they are multiplied, and the products transformed back: 36 products instead of 144. For each point the
products of all tiles, channels and kernels are one product of matrices, for which `kernels.gemm` has the means. The
gradient of the input is a convolution with the kernels turned round; the gradient of the weight has the three
transforms exchanged.

Tiles go by blocks whose values stay in the cache. While a block is multiplied, which is all arithmetic, the processor
fetches what the block's output will be written to and what the next block reads.

The price is accuracy: transforms add and subtract multiples up to 8 of numbers that are near one another. In float32
the error is about ten times that of a sum in order; `tests/unit/kernels/test_winograd.py` derives its bound.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from hpdl_mpi.kernels.emit import VECTOR_BYTES, memory_of
from hpdl_mpi.kernels.gemm import gemm, multiply, panel_vectors, workspace
from hpdl_mpi.kernels.jit import inline, kernel, parallel_kernel, thread_count
from hpdl_mpi.kernels.tiles import prefetch_range, tile_transform
from hpdl_mpi.kernels.vector import ROWS, transpose_square

OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
"""A tile of outputs is OUTPUT @ (products at the points) @ OUTPUT.T; the points are 0, 1, -1, 2, -2 and infinity."""

FILTER = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)

TILE = 4
_EDGE = 6
_POINTS = _EDGE * _EDGE

_BLOCK_TILES, _LARGE_BLOCK_TILES = 8 * ROWS, 16 * ROWS
"""Tiles whose values stay in the second-level cache, and as many as go well with weights that fill the third."""

_LARGE_WEIGHT_BYTES = 16 * 1024 * 1024
"""Of transformed weights, which come from memory once for each block."""

_transform_input = tile_transform("input", INPUT)
_transform_output = tile_transform("output", OUTPUT)
_transform_output_biased = tile_transform("output_biased", OUTPUT, biased=True)
_transform_filter = tile_transform("filter", FILTER)
_transform_gradient = tile_transform("gradient", tuple(zip(*OUTPUT, strict=True)))
_transform_back = tile_transform("back", tuple(zip(*FILTER, strict=True)), adds=True)
_prefetch_to_write, _prefetch_to_read = prefetch_range(writes=True), prefetch_range(writes=False)


def _plane(elements: int, itemsize: int) -> int:
    """Return how far apart the numbers of two points lie, of which each has so many.

    With a power of two the 36 numbers that a transform writes at once would meet in a few sets of the cache.
    """
    page = 4096 // itemsize
    return -(-elements // page) * page + 64 // itemsize


def _panels_plane(depth: int, columns: int, itemsize: int) -> int:
    lanes = VECTOR_BYTES // itemsize
    return _plane(depth * -(-columns // lanes) * lanes, itemsize)


def _block_tiles(channels: int, columns: int, itemsize: int) -> int:
    """Return the tiles of a block of a convolution."""
    large = _POINTS * channels * columns * itemsize > _LARGE_WEIGHT_BYTES
    return _LARGE_BLOCK_TILES if large else _BLOCK_TILES


def cost(output: tuple[int, int]) -> float:
    """Return how many products an output of this height and width takes, as a share of those of the definition."""
    height, width = output
    tiles = -(-height // TILE) * -(-width // TILE)
    return tiles * _POINTS / (9 * height * width)


def scratch_shape(weight_shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, int]:
    """Return the shape of `scratch` of all functions here, for a weight (k, 3, 3, c): (threads, elements)."""
    k, _, _, c = weight_shape
    itemsize = dtype.itemsize
    values = sum(_plane(_LARGE_BLOCK_TILES * channels, itemsize) for channels in (c, k))
    return thread_count(), _POINTS * values


def panels_size(depth: int, columns: int, dtype: np.dtype) -> int:
    """Return the elements of transformed weights, for `depth` channels before and `columns` after."""
    return _POINTS * _panels_plane(depth, columns, dtype.itemsize)


@kernel
def _transpose(weight, first, last, target):
    """target[c, i, j, k] = weight[k, i, j, c] for kernels `first` to `last`; what pads k or c is written too."""
    kernels, _, _, channels = weight.shape
    flat, out = weight.reshape(-1), target.reshape(-1)
    lanes = VECTOR_BYTES // weight.itemsize
    row = 9 * target.shape[3]
    for k in range(first, last, lanes):
        for place in range(9):
            for c in range(0, channels, lanes):
                source = (k * 9 + place) * channels + c, 9 * channels
                size = min(lanes, kernels - k), min(lanes, channels - c)
                transpose_square(flat, source, size, out, (c * row + place * target.shape[3] + k, row))


@kernel
def _make_panels(weight, columns, turned, first, last, plane, panels):
    """Transform the kernels from channels `first` to `last`, (depth, 3, 3, at least `columns`), into panels."""
    depth, width = weight.shape[0], weight.shape[3]
    flat = weight.reshape(-1)
    lanes = VECTOR_BYTES // weight.itemsize
    every = np.int64(0), np.int64(3), np.int64(0), np.int64(3)
    square = np.int64(_EDGE), np.int64(_EDGE)
    down, right = (-3 * width, -width) if turned else (3 * width, width)
    for d in range(first, last):
        corner = (d * 9 + (8 if turned else 0)) * width
        j = 0
        while j < columns:
            size = panel_vectors(columns - j, lanes) * lanes
            target = j * depth + d * size, _EDGE * plane, plane
            count = min(size, columns - j)
            _transform_filter(flat, (corner + j, down, right), every, panels, target, square, count, flat)
            j += size


@parallel_kernel
def _transpose_all(weight, target, parts):
    lanes = VECTOR_BYTES // weight.itemsize
    groups = target.shape[3] // lanes
    for part in prange(parts):
        last = min((part + 1) * groups // parts * lanes, weight.shape[0])
        _transpose(weight, part * groups // parts * lanes, last, target)


@parallel_kernel
def _make_all_panels(weight, columns, turned, plane, panels, parts):
    depth = weight.shape[0]
    for part in prange(parts):
        _make_panels(weight, columns, turned, part * depth // parts, (part + 1) * depth // parts, plane, panels)


@inline
def _next_tile(tile, tiles):
    """Return the tile (image, row, column) after another one, where an image has `tiles` (rows, columns)."""
    image, row, column = tile
    column += 1
    if column == tiles[1]:
        column = 0
        row += 1
        if row == tiles[0]:
            row = 0
            image += 1
    return image, row, column


@inline
def _tile(number, tiles):
    image, rest = divmod(number, tiles[0] * tiles[1])
    return image, rest // tiles[1], rest % tiles[1]


@kernel
def _input_values(x, padding, tiles, first, last, plane, values):
    """Transform the tiles of an image from `first` to `last`."""
    height, width, channels = x.shape[1:]
    flat = x.reshape(-1)
    square = np.int64(_EDGE), np.int64(_EDGE)
    tile = _tile(first, tiles)
    for number in range(first, last):
        top, left = TILE * tile[1] - padding[0], TILE * tile[2] - padding[1]
        source = ((tile[0] * height + top) * width + left) * channels, width * channels, channels
        inside = -top, height - top, -left, width - left
        target = (number - first) * channels, _EDGE * plane, plane
        _transform_input(flat, source, inside, values, target, square, channels, flat)
        tile = _next_tile(tile, tiles)


@kernel
def _gradient_values(dy, tiles, first, last, plane, values):
    """Transform the tiles of an output's gradient."""
    height, width, channels = dy.shape[1:]
    flat = dy.reshape(-1)
    square = np.int64(_EDGE), np.int64(_EDGE)
    tile = _tile(first, tiles)
    for number in range(first, last):
        top, left = TILE * tile[1], TILE * tile[2]
        source = ((tile[0] * height + top) * width + left) * channels, width * channels, channels
        inside = np.int64(0), height - top, np.int64(0), width - left
        target = (number - first) * channels, _EDGE * plane, plane
        _transform_gradient(flat, source, inside, values, target, square, channels, flat)
        tile = _next_tile(tile, tiles)


@kernel
def _write_outputs(products, plane, bias, tiles, first, last, y):
    """Transform products back into tiles of the output."""
    height, width, channels = y.shape[1:]
    flat = y.reshape(-1)
    every = np.int64(0), np.int64(_EDGE), np.int64(0), np.int64(_EDGE)
    tile = _tile(first, tiles)
    for number in range(first, last):
        top, left = TILE * tile[1], TILE * tile[2]
        source = (number - first) * channels, _EDGE * plane, plane
        target = ((tile[0] * height + top) * width + left) * channels, width * channels, channels
        within = height - top, width - left
        if bias.size:
            _transform_output_biased(products, source, every, flat, target, within, channels, bias)
        else:
            _transform_output(products, source, every, flat, target, within, channels, flat)
        tile = _next_tile(tile, tiles)


@kernel
def _multiply_points(values, plane, count, panels, panels_plane, depth, products, columns, soon, later):
    """Multiply the values of a block with the weights at each point, and fetch memory meanwhile.

    `soon` and `later` are flat arrays with a start and a stop: what is written when this is done, what is read then.
    """
    written, write_start, write_stop = soon
    read, read_start, read_stop = later
    lanes = VECTOR_BYTES // values.itemsize
    for point in range(_POINTS):
        _prefetch_to_write(
            written,
            write_start + (write_stop - write_start) * point // _POINTS,
            write_start + (write_stop - write_start) * (point + 1) // _POINTS,
        )
        _prefetch_to_read(
            read,
            read_start + (read_stop - read_start) * point // _POINTS,
            read_start + (read_stop - read_start) * (point + 1) // _POINTS,
        )
        j = 0
        while j < columns:
            vectors = panel_vectors(columns - j, lanes)
            start = point * panels_plane + j * depth
            panel = panels[start : start + depth * vectors * lanes]
            size = count, min(vectors * lanes, columns - j)
            left, target = (point * plane[0], depth, 1), (point * plane[1] + j, columns)
            multiply(vectors, depth, values, left, panel, products, target, size, False)
            j += vectors * lanes


@inline
def _tiles_of(image):
    """Return how many tiles an image (n, height, width, channels) has, downwards and across."""
    return -(-image.shape[1] // TILE), -(-image.shape[2] // TILE)


@parallel_kernel
def _convolve(x, panels, panels_plane, bias, top, left, block, planes, scratch, y):
    channels, columns = x.shape[3], y.shape[3]
    tiles = _tiles_of(y)
    total = len(y) * tiles[0] * tiles[1]
    parts = len(scratch)
    for part in prange(parts):
        start, stop = part * total // parts, (part + 1) * total // parts
        blocks = -(-(stop - start) // block)
        values, products = scratch[part, : _POINTS * planes[0]], scratch[part, _POINTS * planes[0] :]
        x_memory, y_memory = memory_of(x), memory_of(y)
        for number in range(blocks):
            first = start + number * (stop - start) // blocks
            last = start + (number + 1) * (stop - start) // blocks
            following = start + min(number + 2, blocks) * (stop - start) // blocks
            _input_values(x, (top, left), tiles, first, last, planes[0], values)
            _multiply_points(
                values,
                planes,
                last - first,
                panels,
                panels_plane,
                channels,
                products,
                columns,
                (y_memory, first * y.size // total, last * y.size // total),
                (x_memory, last * x.size // total, following * x.size // total),
            )
            _write_outputs(products, planes[1], bias, tiles, first, last, y)


@parallel_kernel
def _correlate(x, dy, top, left, block, planes, scratch, workspaces, points, dweights):
    channels, columns = x.shape[3], dy.shape[3]
    tiles = _tiles_of(dy)
    total = len(dy) * tiles[0] * tiles[1]
    parts = len(scratch)
    for part in prange(parts):
        start, stop = part * total // parts, (part + 1) * total // parts
        blocks = -(-(stop - start) // block)
        values, gradients = scratch[part, : _POINTS * planes[0]], scratch[part, _POINTS * planes[0] :]
        sums = points[part].reshape(_POINTS, columns, channels)
        for number in range(blocks):
            first = start + number * (stop - start) // blocks
            last = start + (number + 1) * (stop - start) // blocks
            _input_values(x, (top, left), tiles, first, last, planes[0], values)
            _gradient_values(dy, tiles, first, last, planes[1], gradients)
            for point in range(_POINTS):
                a = gradients[point * planes[1] : point * planes[1] + (last - first) * columns]
                b = values[point * planes[0] : point * planes[0] + (last - first) * channels]
                gemm(
                    a.reshape(last - first, columns),
                    b.reshape(last - first, channels),
                    sums[point],
                    True,
                    False,
                    number > 0,
                    workspaces[part],
                )
        if blocks > 0:
            _add_back(points[part], dweights[part])


@kernel
def _add_back(points, dweight):
    """Add the gradient at the points (36, k, c) to that of the weight (k, 3, 3, c)."""
    kernels, channels = dweight.shape[0], dweight.shape[3]
    flat = dweight.reshape(-1)
    every = np.int64(0), np.int64(_EDGE), np.int64(0), np.int64(_EDGE)
    square = np.int64(3), np.int64(3)
    plane = kernels * channels
    for k in range(kernels):
        source = k * channels, _EDGE * plane, plane
        target = k * 9 * channels, 3 * channels, channels
        _transform_back(points, source, every, flat, target, square, channels, flat)


def forward(x, weight, bias, padding, panels, transposed, scratch, y) -> None:
    """y = convolution of x with weight, plus bias.

    Parameters
    ----------
    x : array, shape (n, h, w, c)
    weight : array, shape (k, 3, 3, c)
    bias : array, shape (k,) or (0,)
    padding : (int, int)
        Vertical and horizontal.
    panels : array, shape (panels_size(c, k),)
        Scratch; the contents of all scratch are lost.
    transposed : array, of `transposed_shape`
        Scratch.
    scratch : array, of `scratch_shape`
        Scratch.
    y : array, shape (n, h + 2 padding - 2, w + 2 padding - 2, k)
        Written.
    """
    _transpose_all(weight, transposed, len(scratch))
    _convolve_with(x, transposed[: x.shape[3]], False, bias, padding, panels, scratch, y)


def points_size(weight_shape: tuple[int, ...]) -> int:
    """Return how many elements the gradient of a weight (k, 3, 3, c) has at the points."""
    return _POINTS * weight_shape[0] * weight_shape[3]


def transposed_shape(weight_shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, int, int, int]:
    """Return the shape of `transposed`: c and k, padded to vectors."""
    k, _, _, c = weight_shape
    lanes = VECTOR_BYTES // dtype.itemsize
    return -(-c // lanes) * lanes, 3, 3, -(-k // lanes) * lanes


def backward_input(dy, weight, padding, panels, scratch, dx) -> None:
    """dx = gradient for the input of `forward`; written. `panels` has panels_size(k, c) elements."""
    no_bias = panels[:0]
    _convolve_with(dy, weight, True, no_bias, (2 - padding[0], 2 - padding[1]), panels, scratch, dx)


def _convolve_with(x, weight, turned, bias, padding, panels, scratch, y) -> None:
    """y = convolution with a weight (channels of x, 3, 3, channels of y or more)."""
    channels, columns, itemsize = x.shape[3], y.shape[3], y.itemsize
    plane = _panels_plane(channels, columns, itemsize)
    _make_all_panels(weight, columns, turned, plane, panels, len(scratch))
    block = _block_tiles(channels, columns, itemsize)
    planes = _plane(block * channels, itemsize), _plane(block * columns, itemsize)
    _convolve(x, panels, plane, bias, *padding, block, planes, scratch, y)


def backward_weight(x, dy, padding, points, scratch, dweights) -> None:
    """dweights[t] += thread t's part of the gradient for the weight.

    Parameters
    ----------
    points : array, shape (threads, points_size)
        Scratch.
    dweights : array, shape (threads, k, 3, 3, c)
    """
    channels, columns, itemsize = x.shape[3], dy.shape[3], dy.itemsize
    # A block's products are added up over its tiles: the more these are, the less often sums come and go.
    block = _LARGE_BLOCK_TILES
    planes = _plane(block * channels, itemsize), _plane(block * columns, itemsize)
    _correlate(x, dy, *padding, block, planes, scratch, workspace(dy.dtype), points, dweights)
