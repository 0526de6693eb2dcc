"""Aligned arrays: the one way in which the package asks the heap for memory it keeps."""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import DTypeLike

from hpdl_mpi.base.errors import InputError

ALIGNMENT = 64
"""Bytes: a cache line, and the width of the widest vector register."""

_PAGE = mmap.PAGESIZE
_DONT_NEED = 4


def _find_madvise() -> Callable[[int, int, int], int]:
    """Return the system's call, or a function that fails as it does."""
    if not sys.platform.startswith("linux"):
        return lambda address, length, advice: -1
    call = ctypes.CDLL(None).madvise
    call.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    call.restype = ctypes.c_int
    return call


_madvise = _find_madvise()

Allocator = Callable[[int], np.ndarray]
"""Takes a number of bytes, returns a zeroed, 64-byte-aligned array of uint8 of that length."""


def heap(nbytes: int) -> np.ndarray:
    """Return `nbytes` zeroed bytes of the heap, shape (nbytes,), uint8, aligned to 64 bytes; the caller owns them.

    Raises
    ------
    InputError
        The system does not give them.
    """
    try:
        raw = np.zeros(nbytes + ALIGNMENT, np.uint8)
    except MemoryError:
        raise _lacking("an array", nbytes) from None
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + nbytes]


def aligned(shape: int | tuple[int, ...], dtype: DTypeLike, allocate: Allocator = heap) -> np.ndarray:
    """Return a zeroed, 64-byte-aligned, C-contiguous array of `shape` and `dtype`; the caller owns it."""
    shape = (shape,) if isinstance(shape, int) else shape
    dtype = np.dtype(dtype)
    return allocate(math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)


def forget(array: np.ndarray) -> None:
    """Zero a contiguous array of the heap, and give its memory back to the system until it is written again."""
    flat = array.reshape(-1).view(np.uint8)
    first = -flat.ctypes.data % _PAGE
    last = max(first, flat.size - (flat.ctypes.data + flat.size) % _PAGE)
    if last > first and _madvise(flat.ctypes.data + first, last - first, _DONT_NEED) == 0:
        flat[:first] = 0
        flat[last:] = 0
    else:  # no whole page in it, or a system that does not take it
        flat[:] = 0


_BY_BATCHES = (
    "make micro-batches smaller (parallel.num_microbatches), cut the model into more stages (parallel.pp), "
    "or start fewer ranks on a node"
)
"""What makes room for what grows with a batch."""


def check_memory(nbytes: int, what: str, processes: int = 1, remedy: str = _BY_BATCHES) -> None:
    """Raise an `InputError` if more is wanted than is `available`: the system may promise it, and end the job later.

    Parameters
    ----------
    nbytes : int
    what : str
        For which they are, in the message.
    processes : int
        How many of this machine's processes will take as much, this one among them.
    remedy : str
        What would make it fit.
    """
    left = available()
    if nbytes * processes > left:
        what = what if processes == 1 else f"{what}, of {processes} ranks"
        raise _lacking(what, nbytes * processes, f"{left:,} bytes", remedy)


def available(root: Path = Path("/")) -> int:
    """Return how many bytes this process may still fill, as far as the system under `root` tells.

    That is what the machine has left, or the limit of the container or of the job (a cgroup of either version) if that
    is lower.
    """
    return min((limit for limit, _ in _bounds(root)), default=sys.maxsize)


def spare(processes: int, root: Path = Path("/")) -> int:
    """Return how many bytes each of so many processes of this machine can fill and nobody miss, as far as is known.

    That is its part of what the machine, its container and its job have left, where what files are kept in counts as
    used, or what it has left of its addresses (``ulimit -v``) if that is less.
    """
    left = min((limit - used for limit, used in _bounds(root)), default=sys.maxsize)
    return max(0, min(left // processes, *_addresses(root), sys.maxsize))


def _addresses(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/self/limits"):
        if line.startswith("Max address space") and (limit := line.split()[3]).isdecimal():
            used = (int(line.split()[1]) * 1024 for line in _lines(root / "proc/self/status") if "VmSize:" in line)
            yield int(limit) - sum(used)


def _bounds(root: Path) -> Iterator[tuple[int, int]]:
    """Yield limits, and what is used of each."""
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024, 0
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, group = line.split(":", 2)
        if controllers in _LIMITS:
            folder, name, usage = _LIMITS[controllers]
            inner = PurePosixPath(group.lstrip("/"))
            for path in (inner, *inner.parents):  # a limit binds all groups inside
                place = root / "sys/fs/cgroup" / folder / path
                used = sum(map(int, _lines(place / usage)))
                yield from ((int(limit), used) for limit in _lines(place / name) if limit.isdecimal())


_LIMITS = {
    "": ("", "memory.max", "memory.current"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
}
"""Folder of a cgroup, files of its limit and of its use, by the controllers that its line names: version 2 has none."""


def _lines(path: Path) -> list[str]:
    """Return the lines of a file of the system's; none where there is no such file."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _lacking(what: str, nbytes: int, found: str | None = None, remedy: str = _BY_BATCHES) -> InputError:
    return InputError(f"not enough memory for {what}", found=found, expected=f"{nbytes:,} bytes", remedy=remedy)
