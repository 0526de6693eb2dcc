"""Blocks of tiles for Winograd's method: how many tiles, how their numbers lie, and what is fetched meanwhile."""

from __future__ import annotations

from hpdl_mpi.kernels.jit import inline
from hpdl_mpi.kernels.tiles import prefetch_range
from hpdl_mpi.kernels.vector import ROWS

_TILES, MOST_TILES = 8 * ROWS, 16 * ROWS
"""Of a block."""

_BLOCK_BYTES = 2 * 1024 * 1024
"""Of values and products that a block should have, a few times the second-level cache."""

_LARGE_BYTES = 8 * 1024 * 1024
"""Of weights at the points, or of values: a good part of the third-level cache."""

prefetch_to_write, prefetch_to_read = prefetch_range(writes=True), prefetch_range(writes=False)


def plane(elements: int, itemsize: int) -> int:
    """Return how far apart the numbers of two points lie, of which each has so many.

    With a power of two those that a transform writes at once would meet in a few sets of the cache.
    """
    page = 4096 // itemsize
    return -(-elements // page) * page + 64 // itemsize


def block_tiles(weight_bytes: int, tile_bytes: int) -> int:
    """Return the tiles of a block, each with so many bytes of values and products."""
    if weight_bytes > 2 * _LARGE_BYTES:
        return MOST_TILES  # weights come from memory once for each block
    return _TILES if _TILES * tile_bytes <= _BLOCK_BYTES else _TILES // 2


def worth_columns(weight_bytes: int, value_bytes: int) -> bool:
    """Return whether columns go by groups, for so many bytes of weights at the points and of values of all tiles."""
    return value_bytes <= 2 * _LARGE_BYTES < weight_bytes


@inline
def block_of(number, blocks, start, stop):
    """Return the first tile of a block of tiles, the last + 1, and the last + 1 of the block after it."""
    size = stop - start
    following = min(number + 2, blocks)
    return start + number * size // blocks, start + (number + 1) * size // blocks, start + following * size // blocks


@inline
def share_of(memory, point, points):
    """Return the start and stop of a point's share of (array, start, stop)."""
    size = memory[2] - memory[1]
    return memory[1] + size * point // points, memory[1] + size * (point + 1) // points
