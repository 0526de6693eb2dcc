"""Convolution with kernels of 3 x 3 or 5 x 5 and stride 1 by Winograd's method (Lavin and Gray, 2016).

The output is cut into tiles, of 4 x 4 under kernels of 3 x 3 and of 2 x 2 under kernels of 5 x 5. The tile of the image
that such a tile depends on, 6 x 6, and the kernel are transformed to their values at 36 points; there they are
multiplied, and the products transformed back: 36 products instead of 144 or 100. For each point the products of all
tiles, channels and kernels are one product of matrices, for which `kernels.gemm` has the means. The gradient of the
input is a convolution with the kernels turned round; the gradient of the weight has the three transforms exchanged.

Tiles go by blocks whose values stay in the cache. While a block is multiplied, which is all arithmetic, the processor
fetches what the block's output will be written to and what the next block reads.

The price is accuracy: transforms add and subtract multiples up to 16 of numbers that are near one another. In float32
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

KERNEL_SIZES = (3, 5)

INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
"""The values of a tile of inputs are INPUT @ tile @ INPUT.T; the points are 0, 1, -1, 2, -2 and infinity."""

OUTPUTS = {
    3: ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
    5: ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 1)),
}
"""By kernel size: a tile of outputs is OUTPUTS[r] @ (products at the points) @ OUTPUTS[r].T."""

FILTERS = {
    3: (
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
    5: (
        (1 / 4, 0, 0, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6, 1 / 3, 2 / 3),
        (1 / 24, -1 / 12, 1 / 6, -1 / 3, 2 / 3),
        (0, 0, 0, 0, 1),
    ),
}
"""By kernel size: the values of a kernel."""

_EDGE = 6
_POINTS = _EDGE * _EDGE

_BLOCK_TILES, _LARGE_BLOCK_TILES = 8 * ROWS, 16 * ROWS
"""Tiles whose values stay in the second-level cache, and as many as go well with weights that fill the third."""

_LARGE_WEIGHT_BYTES = 16 * 1024 * 1024
"""Of transformed weights, which come from memory once for each block."""

_transform_input = tile_transform("input", INPUT)
_outputs_3, _outputs_5 = (tile_transform(f"outputs_{r}", OUTPUTS[r]) for r in KERNEL_SIZES)
_biased_3, _biased_5 = (tile_transform(f"biased_{r}", OUTPUTS[r], biased=True) for r in KERNEL_SIZES)
_filter_3, _filter_5 = (tile_transform(f"filter_{r}", FILTERS[r]) for r in KERNEL_SIZES)
_gradient_3, _gradient_5 = (tile_transform(f"gradient_{r}", tuple(zip(*OUTPUTS[r], strict=True))) for r in KERNEL_SIZES)
_back_3, _back_5 = (tile_transform(f"back_{r}", tuple(zip(*FILTERS[r], strict=True)), adds=True) for r in KERNEL_SIZES)
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


def tile_size(kernel_size: int) -> int:
    """Return the height of a tile of outputs."""
    return len(OUTPUTS[kernel_size])


def cost(kernel_size: int, output: tuple[int, int]) -> float:
    """Return how many products an output of this height and width takes, as a share of those of the definition."""
    height, width = output
    tile = tile_size(kernel_size)
    return -(-height // tile) * -(-width // tile) * _POINTS / (kernel_size**2 * height * width)


def scratch_shape(weight_shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, int]:
    """Return the shape of `scratch` of all functions here, for a weight (k, r, r, c): (threads, elements)."""
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
    kernels, r, _, channels = weight.shape
    flat, out = weight.reshape(-1), target.reshape(-1)
    lanes = VECTOR_BYTES // weight.itemsize
    row = r * r * target.shape[3]
    for k in range(first, last, lanes):
        for place in range(r * r):
            for c in range(0, channels, lanes):
                source = (k * r * r + place) * channels + c, r * r * channels
                size = min(lanes, kernels - k), min(lanes, channels - c)
                transpose_square(flat, source, size, out, (c * row + place * target.shape[3] + k, row))


@kernel
def _make_panels(weight, columns, turned, first, last, plane, panels):
    """Transform the kernels from channels `first` to `last`, (depth, r, r, at least `columns`), into panels."""
    depth, r, _, width = weight.shape
    flat = weight.reshape(-1)
    lanes = VECTOR_BYTES // weight.itemsize
    every = np.int64(0), r, np.int64(0), r
    square = np.int64(_EDGE), np.int64(_EDGE)
    down, right = (-r * width, -width) if turned else (r * width, width)
    for d in range(first, last):
        corner = (d * r * r + (r * r - 1 if turned else 0)) * width
        j = 0
        while j < columns:
            size = panel_vectors(columns - j, lanes) * lanes
            target = j * depth + d * size, _EDGE * plane, plane
            count = min(size, columns - j)
            source = corner + j, down, right
            if r == 3:
                _filter_3(flat, source, every, panels, target, square, count, flat)
            else:
                _filter_5(flat, source, every, panels, target, square, count, flat)
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
def _input_values(x, size, padding, tiles, first, last, plane, values):
    """Transform the tiles of an image from `first` to `last`, under outputs of `size` x `size`."""
    height, width, channels = x.shape[1:]
    flat = x.reshape(-1)
    square = np.int64(_EDGE), np.int64(_EDGE)
    tile = _tile(first, tiles)
    for number in range(first, last):
        top, left = size * tile[1] - padding[0], size * tile[2] - padding[1]
        source = ((tile[0] * height + top) * width + left) * channels, width * channels, channels
        inside = -top, height - top, -left, width - left
        target = (number - first) * channels, _EDGE * plane, plane
        _transform_input(flat, source, inside, values, target, square, channels, flat)
        tile = _next_tile(tile, tiles)


@kernel
def _gradient_values(dy, size, tiles, first, last, plane, values):
    """Transform the tiles of an output's gradient."""
    height, width, channels = dy.shape[1:]
    flat = dy.reshape(-1)
    square = np.int64(_EDGE), np.int64(_EDGE)
    tile = _tile(first, tiles)
    for number in range(first, last):
        top, left = size * tile[1], size * tile[2]
        source = ((tile[0] * height + top) * width + left) * channels, width * channels, channels
        inside = np.int64(0), height - top, np.int64(0), width - left
        target = (number - first) * channels, _EDGE * plane, plane
        if size == 4:
            _gradient_3(flat, source, inside, values, target, square, channels, flat)
        else:
            _gradient_5(flat, source, inside, values, target, square, channels, flat)
        tile = _next_tile(tile, tiles)


@kernel
def _write_outputs(products, plane, bias, size, tiles, first, last, y):
    """Transform products back into tiles of the output."""
    height, width, channels = y.shape[1:]
    flat = y.reshape(-1)
    every = np.int64(0), np.int64(_EDGE), np.int64(0), np.int64(_EDGE)
    tile = _tile(first, tiles)
    for number in range(first, last):
        top, left = size * tile[1], size * tile[2]
        source = (number - first) * channels, _EDGE * plane, plane
        target = ((tile[0] * height + top) * width + left) * channels, width * channels, channels
        within = height - top, width - left
        if bias.size and size == 4:
            _biased_3(products, source, every, flat, target, within, channels, bias)
        elif bias.size:
            _biased_5(products, source, every, flat, target, within, channels, bias)
        elif size == 4:
            _outputs_3(products, source, every, flat, target, within, channels, flat)
        else:
            _outputs_5(products, source, every, flat, target, within, channels, flat)
        tile = _next_tile(tile, tiles)


@inline
def _share_of(memory, point):
    """Return the start and stop of a point's share of (array, start, stop)."""
    size = memory[2] - memory[1]
    return memory[1] + size * point // _POINTS, memory[1] + size * (point + 1) // _POINTS


@kernel
def _multiply_points(values, plane, count, panels, panels_plane, depth, products, columns, soon, later):
    """Multiply the values of a block with the weights at each point, and fetch memory meanwhile.

    `soon` and `later` are flat arrays with a start and a stop: what is written when this is done, what is read then.
    """
    lanes = VECTOR_BYTES // values.itemsize
    for point in range(_POINTS):
        _prefetch_to_write(soon[0], *_share_of(soon, point))
        _prefetch_to_read(later[0], *_share_of(later, point))
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
def _tiles_of(image, size):
    """Return how many tiles an image (n, height, width, channels) has, downwards and across."""
    return -(-image.shape[1] // size), -(-image.shape[2] // size)


@inline
def _block_of(number, blocks, start, stop):
    """Return the first tile of a block of tiles, the last + 1, and the last + 1 of the block after it."""
    size = stop - start
    following = min(number + 2, blocks)
    return start + number * size // blocks, start + (number + 1) * size // blocks, start + following * size // blocks


@parallel_kernel
def _convolve(x, panels, panels_plane, bias, size, top, left, block, planes, scratch, y):
    channels, columns = x.shape[3], y.shape[3]
    tiles = _tiles_of(y, size)
    total = len(y) * tiles[0] * tiles[1]
    parts = len(scratch)
    for part in prange(parts):
        start, stop = part * total // parts, (part + 1) * total // parts
        blocks = -(-(stop - start) // block)
        values, products = scratch[part, : _POINTS * planes[0]], scratch[part, _POINTS * planes[0] :]
        x_memory, y_memory = memory_of(x), memory_of(y)
        for number in range(blocks):
            first, last, following = _block_of(number, blocks, start, stop)
            _input_values(x, size, (top, left), tiles, first, last, planes[0], values)
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
            _write_outputs(products, planes[1], bias, size, tiles, first, last, y)


@parallel_kernel
def _correlate(x, dy, size, top, left, block, planes, scratch, workspaces, points, dweights):
    channels, columns = x.shape[3], dy.shape[3]
    tiles = _tiles_of(dy, size)
    total = len(dy) * tiles[0] * tiles[1]
    parts = len(scratch)
    for part in prange(parts):
        start, stop = part * total // parts, (part + 1) * total // parts
        blocks = -(-(stop - start) // block)
        values, gradients = scratch[part, : _POINTS * planes[0]], scratch[part, _POINTS * planes[0] :]
        sums = points[part].reshape(_POINTS, columns, channels)
        x_memory, dy_memory = memory_of(x), memory_of(dy)
        for number in range(blocks):
            first, last, following = _block_of(number, blocks, start, stop)
            later = x_memory, last * x.size // total, following * x.size // total
            later_too = dy_memory, last * dy.size // total, following * dy.size // total
            _input_values(x, size, (top, left), tiles, first, last, planes[0], values)
            _gradient_values(dy, size, tiles, first, last, planes[1], gradients)
            for point in range(_POINTS):
                _prefetch_to_read(later[0], *_share_of(later, point))
                _prefetch_to_read(later_too[0], *_share_of(later_too, point))
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
    """Add the gradient at the points (36, k, c) to that of the weight (k, r, r, c)."""
    kernels, r, _, channels = dweight.shape
    flat = dweight.reshape(-1)
    every = np.int64(0), np.int64(_EDGE), np.int64(0), np.int64(_EDGE)
    plane = kernels * channels
    for k in range(kernels):
        source = k * channels, _EDGE * plane, plane
        target = k * r * r * channels, r * channels, channels
        if r == 3:
            _back_3(points, source, every, flat, target, (r, r), channels, flat)
        else:
            _back_5(points, source, every, flat, target, (r, r), channels, flat)


def forward(x, weight, bias, padding, panels, transposed, scratch, y) -> None:
    """y = convolution of x with weight, plus bias.

    Parameters
    ----------
    x : array, shape (n, h, w, c)
    weight : array, shape (k, r, r, c)
        r is one of `KERNEL_SIZES`.
    bias : array, shape (k,) or (0,)
    padding : (int, int)
        Vertical and horizontal.
    panels : array, shape (panels_size(c, k),)
        Scratch; the contents of all scratch are lost.
    transposed : array, of `transposed_shape`
        Scratch.
    scratch : array, of `scratch_shape`
        Scratch.
    y : array, shape (n, h + 2 padding - r + 1, w + 2 padding - r + 1, k)
        Written.
    """
    _transpose_all(weight, transposed, len(scratch))
    _convolve_with(x, transposed[: x.shape[3]], False, bias, padding, panels, scratch, y)


def points_size(weight_shape: tuple[int, ...]) -> int:
    """Return how many elements the gradient of a weight (k, r, r, c) has at the points."""
    return _POINTS * weight_shape[0] * weight_shape[3]


def transposed_shape(weight_shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, int, int, int]:
    """Return the shape of `transposed`: c and k, padded to vectors."""
    k, r, _, c = weight_shape
    lanes = VECTOR_BYTES // dtype.itemsize
    return -(-c // lanes) * lanes, r, r, -(-k // lanes) * lanes


def backward_input(dy, weight, padding, panels, scratch, dx) -> None:
    """dx = gradient for the input of `forward`; written. `panels` has panels_size(k, c) elements."""
    inverse = weight.shape[1] - 1 - padding[0], weight.shape[2] - 1 - padding[1]
    _convolve_with(dy, weight, True, panels[:0], inverse, panels, scratch, dx)


def _convolve_with(x, weight, turned, bias, padding, panels, scratch, y) -> None:
    """y = convolution with a weight (channels of x, r, r, channels of y or more)."""
    channels, columns, itemsize = x.shape[3], y.shape[3], y.itemsize
    plane = _panels_plane(channels, columns, itemsize)
    _make_all_panels(weight, columns, turned, plane, panels, len(scratch))
    block = _block_tiles(channels, columns, itemsize)
    planes = _plane(block * channels, itemsize), _plane(block * columns, itemsize)
    _convolve(x, panels, plane, bias, tile_size(weight.shape[1]), *padding, block, planes, scratch, y)


def backward_weight(x, dy, padding, points, scratch, dweights) -> None:
    """dweights[t] += thread t's part of the gradient for the weight.

    Parameters
    ----------
    points : array, shape (threads, points_size)
        Scratch.
    dweights : array, shape (threads, k, r, r, c)
    """
    channels, columns, itemsize = x.shape[3], dy.shape[3], dy.itemsize
    # A block's products are added up over its tiles: the more these are, the less often sums come and go.
    block = _LARGE_BLOCK_TILES
    planes = _plane(block * channels, itemsize), _plane(block * columns, itemsize)
    _correlate(
        x, dy, tile_size(dweights.shape[2]), *padding, block, planes, scratch, workspace(dy.dtype), points, dweights
    )
