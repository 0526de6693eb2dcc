"""Blocks of tiles for Winograd's method: how many tiles, how their numbers lie, and what is fetched meanwhile."""

from __future__ import annotations

from hpdl_mpi.kernels.jit import inline
from hpdl_mpi.kernels.tiles import prefetch_range
from hpdl_mpi.kernels.vector import ROWS

_TILES, _MOST_TILES = 8 * ROWS, 16 * ROWS
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
        return _MOST_TILES  # weights come from memory once for each block
    return _TILES if _TILES * tile_bytes <= _BLOCK_BYTES else _TILES // 2


def summed_tiles(sum_bytes: int) -> int:
    """Return the tiles of a block whose products are added to so many bytes of sums, which come and go with each."""
    return _TILES if sum_bytes <= _LARGE_BYTES else _MOST_TILES


def worth_columns(weight_bytes: int, value_bytes: int) -> bool:
    """Return whether columns go by groups, for so many bytes of weights at the points and of values of all tiles."""
    return value_bytes <= 2 * _LARGE_BYTES < weight_bytes


def worth_sums_of_columns(sum_bytes: int, value_bytes: int) -> bool:
    """Return whether sums go by groups of columns, for so many bytes of them and of what is multiplied.

    They go so where sums of all columns would leave the cache with each block, and what is multiplied mostly does not.
    """
    return value_bytes <= 5 * _LARGE_BYTES // 2 and sum_bytes > _LARGE_BYTES


def num_blocks(tiles: int, most: int, threads: int) -> int:
    """Return in how many blocks of at most so many tiles threads go through all of them, each as often."""
    blocks = -(-tiles // max(1, most))
    return -(-blocks // threads) * threads


@inline
def block_of(number, blocks, start, stop):
    """Return the first of a block's tiles and the last + 1; the block after the last one is empty.

    Each block but the last has whole tiles of a product.
    """
    rows = -(-(stop - start) // ROWS)
    first, last = min(number, blocks) * rows // blocks, min(number + 1, blocks) * rows // blocks
    return min(stop, start + first * ROWS), min(stop, start + last * ROWS)


@inline
def share_of(memory, point, points):
    """Return the start and stop of a point's share of (array, start, stop)."""
    size = memory[2] - memory[1]
    return memory[1] + size * point // points, memory[1] + size * (point + 1) // points
