"""Tiles of images at the points of a Winograd scheme, and back; see `kernels.schemes`.

The values of a block of tiles lie point by point, `plane` elements apart: for each point a matrix with a row per tile
and a column per channel.
"""

from __future__ import annotations

import numpy as np

from hpdl_mpi.kernels.jit import inline, kernel
from hpdl_mpi.kernels.schemes import transposed
from hpdl_mpi.kernels.tiles import tile_transform

_transform_input = tile_transform("input", lambda scheme: scheme.INPUT)
_transform_gradient = tile_transform("gradient", lambda scheme: transposed(scheme.OUTPUT))
_transform_products = tile_transform("products", lambda scheme: scheme.OUTPUT)
_transform_biased = tile_transform("biased", lambda scheme: scheme.OUTPUT, biased=True)


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


@inline
def tiles_of(scheme, image):
    """Return how many tiles an output (n, height, width, channels) has, downwards and across."""
    return -(-image.shape[1] // scheme.tile), -(-image.shape[2] // scheme.tile)


@inline
def filter_of(scheme, point):
    """Return which values of the kernel a point takes."""
    last = scheme.filters - 1
    return min(point // scheme.points, last) * scheme.filters + min(point % scheme.points, last)


@kernel
def input_values(scheme, x, padding, tiles, first, last, plane, values):
    """Transform tiles of images to values at the points.

    Parameters
    ----------
    scheme : Scheme
    x : array, shape (n, height, width, c)
    padding : (int, int)
        Vertical and horizontal.
    tiles : (int, int)
        Of an image, downwards and across.
    first, last : int
        Numbers of the first tile and the last + 1, counted over all images.
    plane : int
        How far apart the values of two points lie.
    values : flat array, of at least (points^2 - 1) plane + (last - first) c
        Written: a row of c for each tile, point by point.
    """
    height, width, channels = x.shape[1:]
    flat = x.reshape(-1)
    square = np.int64(scheme.points), np.int64(scheme.points)
    tile = _tile(first, tiles)
    for number in range(first, last):
        top, left = scheme.step * tile[1] - padding[0], scheme.step * tile[2] - padding[1]
        source = ((tile[0] * height + top) * width + left) * channels, width * channels, channels
        inside = -top, height - top, -left, width - left
        target = (number - first) * channels, scheme.points * plane, plane
        _transform_input(scheme, flat, source, inside, values, target, square, channels, flat)
        tile = _next_tile(tile, tiles)


@kernel
def gradient_values(scheme, dy, tiles, first, last, plane, values):
    """Transform tiles of an output's gradient to values at the points.

    Parameters
    ----------
    scheme : Scheme
    dy : array, shape (n, height, width, k)
    tiles, first, last, plane
        See `input_values`.
    values : flat array, of at least (points^2 - 1) plane + (last - first) k
        Written: a row of k for each tile, point by point.
    """
    height, width, channels = dy.shape[1:]
    flat = dy.reshape(-1)
    square = np.int64(scheme.points), np.int64(scheme.points)
    tile = _tile(first, tiles)
    for number in range(first, last):
        top, left = scheme.tile * tile[1], scheme.tile * tile[2]
        source = ((tile[0] * height + top) * width + left) * channels, width * channels, channels
        inside = np.int64(0), height - top, np.int64(0), width - left
        target = (number - first) * channels, scheme.points * plane, plane
        _transform_gradient(scheme, flat, source, inside, values, target, square, channels, flat)
        tile = _next_tile(tile, tiles)


@kernel
def write_outputs(scheme, products, plane, bias, tiles, first, last, columns, y):
    """Transform products back into some columns of tiles of the output.

    Parameters
    ----------
    scheme : Scheme
    products : flat array, of at least (points^2 - 1) plane + (last - first) (columns[1] - columns[0])
        A row of the columns for each tile, point by point.
    plane : int
        How far apart the products of two points lie.
    bias : array, shape (k,) or (0,)
    tiles, first, last
        See `input_values`.
    columns : (int, int)
        The first channel of `y` and the last + 1.
    y : array, shape (n, height, width, k)
        Written there.
    """
    height, width, channels = y.shape[1:]
    flat = y.reshape(-1)
    every = np.int64(0), np.int64(scheme.points), np.int64(0), np.int64(scheme.points)
    count = columns[1] - columns[0]
    tile = _tile(first, tiles)
    for number in range(first, last):
        top, left = scheme.tile * tile[1], scheme.tile * tile[2]
        source = (number - first) * count, scheme.points * plane, plane
        start = ((tile[0] * height + top) * width + left) * channels + columns[0]
        target = start, width * channels, channels
        within = height - top, width - left
        if bias.size:
            plus = bias[columns[0] : columns[1]]
            _transform_biased(scheme, products, source, every, flat, target, within, count, plus)
        else:
            _transform_products(scheme, products, source, every, flat, target, within, count, flat)
        tile = _next_tile(tile, tiles)
