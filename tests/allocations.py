"""The memory that NumPy takes for arrays.

NumPy reports the data of its arrays to tracemalloc, which is kept from seeing Python's own objects here: views and
tuples are made and freed all the time. It keeps freed data of less than 1,024 bytes and hands it out again, which
tracemalloc does not see.
"""

from __future__ import annotations

import ctypes
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class PythonAllocator(ctypes.Structure):
    """PyMemAllocatorEx: what Python's allocator of one domain (raw memory, memory, objects) is made of."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("context", "malloc", "calloc", "realloc", "free")]


@contextmanager
def traced_arrays() -> Iterator[None]:
    """Let tracemalloc see what NumPy reports alone: it takes Python's allocators over, and they are put back."""
    allocators = [PythonAllocator() for _ in range(3)]
    for domain, allocator in enumerate(allocators):
        ctypes.pythonapi.PyMem_GetAllocator(domain, ctypes.byref(allocator))
    tracemalloc.start()
    for domain, allocator in enumerate(allocators):
        ctypes.pythonapi.PyMem_SetAllocator(domain, ctypes.byref(allocator))
    try:
        yield
    finally:
        tracemalloc.stop()


class Growth:
    """Bytes of array data that a call allocates: those `kept` at its end, and at its `peak`."""

    def __init__(self, function: Callable[[], None]) -> None:
        with traced_arrays():
            function()
            tracemalloc.clear_traces()
            tracemalloc.reset_peak()
            function()
            self.kept, self.peak = tracemalloc.get_traced_memory()
