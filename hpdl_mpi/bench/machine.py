"""Where a benchmark ran: a figure means nothing without it."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from hpdl_mpi import __version__


def describe_machine() -> dict[str, Any]:
    """Return the processor, its cores and how busy they are, memory, and the operating system."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "cores_available": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
    }


def describe_versions(*further: str) -> dict[str, str]:
    """Return the versions of Python, of this package, of what all kernels stand on, and of further distributions."""
    ours = {"python": platform.python_version(), "hpdl_mpi": __version__}
    return ours | {name: metadata.version(name) for name in ("numpy", "numba", "llvmlite", *further)}


def describe_command() -> str:
    """Return the command line of this process as a shell would take it, in the current folder.

    Programs, and files that lie outside this folder, are named without their own: that is no one else's.
    """
    return shlex.join(_without_folder(argument) for argument in sys.orig_argv)


def _without_folder(argument: str) -> str:
    """Return an argument that is a path, or ends in one behind "=", as others may see it; any other as it is."""
    head, equals, text = argument.rpartition("=")
    here = Path.cwd()
    path = Path(os.path.normpath(here / text))
    if not (os.path.isabs(text) or text.startswith("..")) or not path.name:
        return argument
    return f"{head}{equals}{path.relative_to(here) if path.is_relative_to(here) else path.name}"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()  # not every architecture has a name for its processors
