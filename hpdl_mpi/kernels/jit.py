"""How kernels are compiled: flags, the on-disk cache, and one source for one thread or several.

A kernel that can use several threads is written with `prange` and marked ``@parallel_kernel``. It is compiled
twice, each on first use: a serial form, which needs no threading layer and may run on several Python threads at
once, and a parallel form. `use_threads` chooses between them for the Python thread that calls it; all others take the
serial form, which does not get in the way of a thread that computes.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import tempfile
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core.caching import FunctionCache

import hpdl_mpi.kernels.processor  # noqa: F401  (says what Numba compiles for)
from hpdl_mpi.kernels.linking import keep_own_copies
from hpdl_mpi.kernels.recording import current

FASTMATH = {"nsz", "arcp", "contract", "afn", "reassoc"}
"""LLVM's fast-math flags without `nnan` and `ninf`: a NaN must survive a kernel to be seen."""


@lru_cache
def cache_folder() -> Path:
    """Return this user's and this node's folder of compiled kernels, made if need be.

    Its name hashes all files of `kernels/` and the versions of Python, Numba, llvmlite and NumPy, because Numba
    itself looks only at the file that holds a function, not at those it calls. ``HPDL_CACHE_DIR`` names another
    parent than ``$XDG_CACHE_HOME/hpdl_mpi`` (``~/.cache/hpdl_mpi``). Where the folder cannot be made there, or
    somebody else could write to it, a private one under the system's temporary folder serves.
    """
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.name.encode() + file.read_bytes())
    for version in (sys.version, numba.__version__, llvmlite.__version__, np.__version__):
        digest.update(version.encode())
    name = f"kernels-{platform.node()}-{digest.hexdigest()[:16]}"
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(os.environ.get("HPDL_CACHE_DIR") or Path(base, "hpdl_mpi")) / name
    if _make_private(folder):
        return folder
    temporary = Path(tempfile.gettempdir(), f"hpdl_mpi-{os.getuid()}")
    if _make_private(temporary) and _make_private(temporary / name):
        return temporary / name
    return Path(tempfile.mkdtemp(prefix="hpdl_mpi-"))


def _make_private(folder: Path) -> bool:
    """Make a folder if need be, and return whether this user, and nobody else, can write there.

    Numba unpickles what it finds in its cache, so that must not come from somebody else.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return False  # a home that cannot be written is common on compute nodes
    return status.st_uid == os.getuid() and not status.st_mode & 0o022 and os.access(folder, os.W_OK)


_announcements: list[Callable[[], None]] = []


def before_compiling(announce: Callable[[], None]) -> None:
    """Let a function be called once, before the next kernel that the cache lacks is compiled."""
    _announcements[:] = [announce]


class _Cache(FunctionCache):
    """Numba's cache of one function; what fails there costs a compilation and not the run."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return what was compiled for a signature, or None if it is not there or cannot be read."""
        try:
            found = super().load_overload(sig, target_context)
        except Exception as error:  # noqa: BLE001  (damaged pickles raise anything)
            _warn("cannot be read, so they are compiled anew", error)
            try:
                Path(self._cache_file._index_path).unlink(missing_ok=True)
            except OSError:
                self.disable()  # saving would read a damaged index first
            found = None
        # Two processes that begin a cache at the same time may give two signatures one file.
        if found is not None and found.signature.args == tuple(sig):
            return found
        while _announcements:
            _announcements.pop()()
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what was compiled for a signature, if the disk takes it."""
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _warn("cannot be kept, so each process compiles them", error)


def _warn(what: str, error: Exception) -> None:
    """Warn in words that are the same for each kernel: Python shows them once."""
    reason = error.strerror if isinstance(error, OSError) else type(error).__name__
    warnings.warn(f"{cache_folder()}: compiled kernels {what} ({reason})", RuntimeWarning, stacklevel=2)


keep_own_copies()


class _Settings(threading.local):
    """What each Python thread has for itself, as Numba's number of threads is."""

    threads = 1


_settings = _Settings()


def _compile(function: Callable, *, fastmath: set[str] | bool = FASTMATH, **options: Any) -> Any:
    """Return Numba's dispatcher, whose cache lies in `cache_folder`."""
    dispatcher = numba.njit(nogil=True, error_model="numpy", fastmath=fastmath, **options)(function)
    # Numba reads this when it makes a cache; functions of others keep their own folder.
    others = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(cache_folder())
    try:
        dispatcher._cache = _Cache(function)
    finally:
        numba.config.CACHE_DIR = others
    return dispatcher


def kernel(function: Callable) -> Any:
    """Compile a function for one thread; other kernels may call it."""
    return _compile(function)


def exact_kernel(function: Callable) -> Any:
    """Compile as `kernel`, but round every operation as it is written."""
    return _compile(function, fastmath=False)


def contracting_kernel(function: Callable) -> Any:
    """Compile as `exact_kernel`, but let a product and the sum that it goes into be rounded at once."""
    return _compile(function, fastmath={"contract"})


def inline(function: Callable) -> Any:
    """Compile a small function that its callers absorb."""
    return _compile(function, inline="always")


class ParallelKernel:
    """A kernel in two forms, `serial` and `parallel`; a call takes the one that the thread count asks for."""

    def __init__(self, function: Callable, fastmath: set[str] | bool = FASTMATH) -> None:
        self.__doc__ = function.__doc__
        self.__name__ = function.__name__
        self.__module__ = function.__module__
        self.serial = _compile(function, fastmath=fastmath)
        # Fused loops would be one loop: each is meant to end before the next begins.
        self.parallel = _compile(_renamed(function), fastmath=fastmath, parallel={"fusion": False})

    def __call__(self, *args: Any) -> Any:
        form = self.serial if _settings.threads == 1 else self.parallel
        if current.recording is not None:
            current.recording.add(form, args)
        return form(*args)


def _renamed(function: Callable) -> Callable:
    """Return a twin under another name: Numba's cache files are named after the function."""
    name = f"{function.__name__}_parallel"
    code = function.__code__.replace(co_name=name, co_qualname=name)
    twin = types.FunctionType(code, function.__globals__, name, function.__defaults__, function.__closure__)
    twin.__qualname__ = name
    twin.__module__ = function.__module__
    return twin


def parallel_kernel(function: Callable) -> ParallelKernel:
    """Compile a function that splits its work with `prange`; only Python calls it, never another kernel."""
    return ParallelKernel(function)


def exact_parallel_kernel(function: Callable) -> ParallelKernel:
    """Compile as `parallel_kernel`, but round every operation as it is written: both forms give the same bits.

    Without fast-math no sum becomes a vector loop; a kernel that needs one adds up several sums side by side.
    """
    return ParallelKernel(function, fastmath=False)


def use_threads(count: int) -> None:
    """Let parallel kernels use `count` threads if this one calls them. Called by `kernels.threads` alone."""
    _settings.threads = count
    if count > 1:
        numba.set_num_threads(count)


def thread_count() -> int:
    """Return the number of threads that parallel kernels use if this one calls them."""
    return _settings.threads


@contextmanager
def counted_allocations() -> Iterator[Callable[[], int]]:
    """Count the memory blocks that compiled code takes inside the context (Numba's own counters).

    Yields
    ------
    count : callable
        Returns the number of blocks taken since the context was entered. Numba takes one small block for each
        array handed from Python to a kernel; what exceeds that number was allocated by a kernel.
    """
    from numba.core.runtime import rtsys

    numba.core.runtime._nrt_python.memsys_enable_stats()
    start = rtsys.get_allocation_stats().mi_alloc
    try:
        yield lambda: rtsys.get_allocation_stats().mi_alloc - start
    finally:
        numba.core.runtime._nrt_python.memsys_disable_stats()
