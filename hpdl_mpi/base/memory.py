"""Aligned arrays: the one way in which the package asks the heap for memory it keeps."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import DTypeLike

ALIGNMENT = 64
"""Bytes: a cache line, and the width of the widest vector register."""

Allocator = Callable[[int], np.ndarray]
"""Takes a number of bytes, returns a zeroed, 64-byte-aligned array of uint8 of that length."""


def heap(nbytes: int) -> np.ndarray:
    """Return `nbytes` zeroed bytes of the heap, shape (nbytes,), uint8, aligned to 64 bytes; the caller owns them."""
    raw = np.zeros(nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + nbytes]


def aligned(shape: int | tuple[int, ...], dtype: DTypeLike, allocate: Allocator = heap) -> np.ndarray:
    """Return a zeroed, 64-byte-aligned, C-contiguous array of `shape` and `dtype`; the caller owns it."""
    shape = (shape,) if isinstance(shape, int) else shape
    dtype = np.dtype(dtype)
    return allocate(math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)
