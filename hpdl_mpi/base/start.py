"""Who speaks for a process of a job that ends before it has started MPI.

While MPI starts, each rank waits for all others, without end; few launchers notice that one of them will never come.
So such a rank starts MPI after all, and ends the job or says good-bye as any other rank does. The way there:
``import hpdl_mpi`` calls `watch_start`, which puts an `Unjoined` in the place of the ranks. That one calls upon MPI
through a `LateMpi`, the module ``hpdl_mpi.comm.world``, which it loads only when it is needed: loading it takes time,
and this room knows no MPI. Once a rank has asked for its ``world()``, that one's communicator takes over.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from typing import NoReturn, Protocol

from hpdl_mpi.base.failure import abort_on_exception
from hpdl_mpi.base.launcher import launched

_MARK = "HPDL_PROCESS"
"""Names the process that the launcher has started; what that one starts inherits the launcher's variables."""


class LateMpi(Protocol):
    """What a process that ends before it has started MPI still wants of it; a module with these functions will do."""

    def connect(self) -> None:
        """Start MPI, which waits until all ranks do so."""

    def abort(self, code: int) -> NoReturn:
        """End all ranks with this exit code."""

    def leave(self) -> None:
        """Say that this rank's program ends, and wait until all ranks have said so. Collective."""


class Unjoined:
    """The ranks of a job as a process knows them before it has started MPI.

    Parameters
    ----------
    rank, size : int
        As the launcher tells.
    load : callable
        Returns MPI; called only if it is needed.
    """

    def __init__(self, rank: int, size: int, load: Callable[[], LateMpi]) -> None:
        self.rank, self.size = rank, size
        self._load = load
        self._process = os.getpid()

    def connect(self) -> None:
        """Start MPI, which waits until all ranks do so."""
        if os.getpid() == self._process:
            self._load().connect()

    def abort(self, code: int) -> NoReturn:
        """End all ranks of the job with this exit code."""
        if os.getpid() != self._process:
            raise SystemExit(code)  # forked
        self._load().abort(code)

    def leave(self) -> None:
        """Say that this rank's program ends, unless it has started MPI by itself. Collective, called at exit."""
        if os.getpid() == self._process and "mpi4py.MPI" not in sys.modules:
            self._load().leave()


def watch_start(load: Callable[[], LateMpi]) -> None:
    """See to it that the other ranks hear of an end of this process before it has started MPI.

    It holds for processes that a launcher has started together with others; all else is left as it is.

    Parameters
    ----------
    load : callable
        Returns MPI; called only if it is needed.
    """
    found = launched(os.environ)
    if found is None or found[1] < 2 or os.environ.setdefault(_MARK, str(os.getpid())) != str(os.getpid()):
        return
    _, size, rank = found
    unjoined = Unjoined(rank, size, load)
    abort_on_exception(unjoined, prepare=unjoined.connect)
    atexit.register(unjoined.leave)
