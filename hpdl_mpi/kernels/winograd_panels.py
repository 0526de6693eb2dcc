"""Weights of a convolution at the points of a Winograd scheme, packed into panels of a matrix product."""

from __future__ import annotations

import numpy as np

from hpdl_mpi.kernels.jit import kernel
from hpdl_mpi.kernels.panels import panel_vectors
from hpdl_mpi.kernels.processor import VECTOR_BYTES
from hpdl_mpi.kernels.tiles import tile_transform
from hpdl_mpi.kernels.vector import VECTORS, transpose_square

GROUP_BYTES = VECTORS * VECTOR_BYTES
"""Of a row of the widest panel: columns go by groups of as many."""

_filter = tile_transform("filter", lambda scheme: scheme.FILTER)


def transposed_size(kernel_size: int, channels: int, itemsize: int) -> int:
    """Return the elements of `transposed` below, for weights of so many input channels."""
    lanes = VECTOR_BYTES // itemsize
    return -(-channels // lanes) * lanes * kernel_size**2 * GROUP_BYTES // itemsize


@kernel
def _transpose(weight, first, count, target):
    """target[c, i, j, k - first] = weight[k, i, j, c] for `count` kernels from `first` on; both arrays flat memory.

    `target` has rows of a group, and what pads k or c is written too.
    """
    _, r, _, channels = weight.shape
    flat = weight.reshape(-1)
    lanes = VECTOR_BYTES // weight.itemsize
    width = GROUP_BYTES // weight.itemsize
    row = r * r * width
    for k in range(0, count, lanes):
        for place in range(r * r):
            for c in range(0, channels, lanes):
                source = ((first + k) * r * r + place) * channels + c, r * r * channels
                size = min(lanes, count - k), min(lanes, channels - c)
                transpose_square(flat, source, size, target, (c * row + place * width + k, row))


@kernel
def make_panels(scheme, weight, turned, first, count, transposed, panels, start, plane):
    """Write the panels of `count` columns from `first` on, at most a group.

    Parameters
    ----------
    scheme : Scheme
    weight : array, shape (k, r, r, c)
    turned : bool
        Columns are c, kernels turned round, and depth is k; otherwise columns are k, and depth is c.
    first, count : int
    transposed : array, of `transposed_size`
        Scratch, unless `turned`.
    panels : flat array
        Where the number of column j is for filter f: ``f plane + start + ...``, a panel after the other.
    start, plane : int
    """
    kernels, r, _, channels = weight.shape
    lanes = VECTOR_BYTES // weight.itemsize
    if turned:
        depth, row, flat = kernels, channels, weight.reshape(-1)
        corner, down, right = (r * r - 1) * row + first, -r * row, -row
    else:
        depth, row, flat = channels, GROUP_BYTES // weight.itemsize, transposed
        corner, down, right = 0, r * row, row
        _transpose(weight, first, count, transposed)
    every = np.int64(0), np.int64(r), np.int64(0), np.int64(r)
    square = np.int64(scheme.filters), np.int64(scheme.filters)
    for d in range(depth):
        j = 0
        while j < count:
            size = panel_vectors(count - j, lanes) * lanes
            target = start + j * depth + d * size, scheme.filters * plane, plane
            source = corner + d * r * r * row + j, down, right
            _filter(scheme, flat, source, every, panels, target, square, min(size, count - j), flat)
            j += size


@kernel
def make_share_of_panels(scheme, weight, turned, columns, part, parts, transposed, panels, plane):
    """Write one of `parts` shares of the panels of all columns; see `make_panels`."""
    depth = weight.shape[0] if turned else weight.shape[3]
    width = GROUP_BYTES // weight.itemsize
    groups = -(-columns // width)
    for group in range(part * groups // parts, (part + 1) * groups // parts):
        first = group * width
        count = min(width, columns - first)
        make_panels(scheme, weight, turned, first, count, transposed, panels, first * depth, plane)
