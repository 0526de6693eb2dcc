"""The ranks are processes of one MPI job. Nothing outside this folder knows mpi4py.

Blocking verbs poll non-blocking ones here rather than wait inside the library, so that a waiting rank gives its core
away when ranks share one, answers signals, and notices a peer that has left the job.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
from mpi4py import MPI

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.base.output import flush_output
from hpdl_mpi.comm.communicator import Communicator, Transfer, Work, check_array, check_message
from hpdl_mpi.comm.departures import NAP, Departures
from hpdl_mpi.comm.mpi_work import Joint, LibraryAllreduce, Message, Prepared, SharedWindow, bytes_spec
from hpdl_mpi.comm.watchdog import Watchdog
from hpdl_mpi.comm.whereabouts import Whereabouts
from hpdl_mpi.comm.window import PAGE, Window
from hpdl_mpi.kernels.threads import available_cores

PATIENCE = 1.0
"""Seconds of waiting after which a rank sleeps between polls and asks whether its peers are still there."""

_SHARED_FOLDER = "/dev/shm"
_LOOK = 0.01
"""Seconds between the times that a rank which waits long asks after others."""

_LAST_WORDS = 0.25

_watchdogs: list[Watchdog] = []
"""The one that watches over this job, while it does."""


class MpiCommunicator(Communicator):
    """A group of MPI processes.

    Parameters
    ----------
    handle : MPI.Intracomm
        A communicator that nobody else uses.
    shared : Shared
        What all groups of the job share.

    Notes
    -----
    A message of more than 2**31 - 1 bytes needs a library of MPI-4.
    """

    shares_process = False
    takes_threads = MPI.Query_thread() == MPI.THREAD_MULTIPLE

    def __init__(self, handle: MPI.Intracomm, shared: Shared) -> None:
        self._handle = handle
        self._shared = shared
        self.rank, self.size = handle.rank, handle.size
        group, everyone = handle.Get_group(), MPI.COMM_WORLD.Get_group()
        self.world_ranks = MPI.Group.Translate_ranks(group, None, everyone)
        group.Free()
        everyone.Free()
        self._place([shared.nodes[rank] for rank in self.world_ranks])
        self.crowded = shared.crowded

    @classmethod
    def world(cls) -> MpiCommunicator:
        """Return the group of all processes of the job, on a duplicate of MPI's own. Collective; call it once."""
        # Waiting inside the library is safe for ranks that leave MPI to us: one that ends early comes here at its exit
        # (see `base.start`). Ranks that have imported mpi4py themselves are on their own until the world is made.
        handle = MPI.COMM_WORLD.Dup()
        node = handle.Split_type(MPI.COMM_TYPE_SHARED)
        nodes = handle.allgather(node.bcast(handle.rank))
        cores = set().union(*node.allgather(available_cores()))
        crowded = len(cores) < node.size
        node.Free()
        comm = cls(handle, Shared(nodes, crowded, Departures(MPI.COMM_WORLD.Dup())))
        atexit.register(comm.leave)
        # For a program that ends MPI itself: all that hangs on this communicator is let go of first.
        farewell = MPI.Comm.Create_keyval(delete_fn=lambda *_: comm.leave())
        MPI.COMM_SELF.Set_attr(farewell, None)
        return comm

    def leave(self) -> None:
        """Say that this rank's program ends, and wait until all ranks of the job have. Collective, called at exit."""
        self._shared.departures.leave()

    def isend(self, array: np.ndarray, dest: int, tag: int = 0) -> Work:
        check_message(array, dest, self.size)
        return Message(self, self._handle.Isend(bytes_spec(array), dest, tag), "send", array.nbytes, dest, tag)

    def irecv(self, array: np.ndarray, source: int, tag: int = 0) -> Work:
        check_message(array, source, self.size, written=True)
        return Message(self, self._handle.Irecv(bytes_spec(array), source, tag), "recv", array.nbytes, source, tag)

    def send_init(self, array: np.ndarray, dest: int, tag: int = 0) -> Transfer:
        check_message(array, dest, self.size)
        return Prepared(self, self._handle.Send_init(bytes_spec(array), dest, tag), "send", array.nbytes, dest, tag)

    def recv_init(self, array: np.ndarray, source: int, tag: int = 0) -> Transfer:
        check_message(array, source, self.size, written=True)
        return Prepared(self, self._handle.Recv_init(bytes_spec(array), source, tag), "recv", array.nbytes, source, tag)

    def _allgather(self, array: np.ndarray, out: np.ndarray) -> None:
        self.wait_for(Joint(self, self._handle.Iallgather(bytes_spec(array), bytes_spec(out)), "allgather"))

    def barrier(self) -> None:
        self.begin_collective("barrier")
        self.wait_for(Joint(self, self._handle.Ibarrier(), "barrier"))

    def allreduce_init(self, array: np.ndarray, label: str = "") -> Transfer:
        check_array(array, written=True)
        return LibraryAllreduce(self, self._handle, array, label)

    def library_name(self) -> str:
        name, version = MPI.get_vendor()
        return f"{name} {'.'.join(map(str, version))}"

    def library_allreduce(self, array: np.ndarray) -> None:
        check_array(array, written=True)
        self._handle.Allreduce(MPI.IN_PLACE, array)

    def split(self, color: int, key: int = 0) -> MpiCommunicator:
        self.begin_collective("split")
        # The library's own wait would not notice a rank that has left.
        self.barrier()
        with self._guarded("split"):
            part = self._handle.Split(color, key)
        assert isinstance(part, MPI.Intracomm), "every rank has a colour"
        return MpiCommunicator(part, self._shared)

    def shareable_bytes(self) -> int:
        # A container may allow little here, and the system ends a process that takes more.
        try:
            state = os.statvfs(_SHARED_FOLDER)
        except OSError:
            return 0
        nodes = self._shared.nodes
        return state.f_bavail * state.f_frsize // nodes.count(nodes[MPI.COMM_WORLD.rank])

    def share(self, nbytes: int) -> Window:
        self.begin_collective(f"share of {nbytes} bytes")
        # The library's own wait would not notice a rank that has left.
        self.barrier()
        with self._guarded("share"):
            try:
                return SharedWindow(self, self._handle, -(-nbytes // PAGE) * PAGE, self._guarded)
            except MPI.Exception as error:
                found = error.Get_error_string().strip().splitlines()[-1]
                raise InputError("the MPI library gives no window", where="memory to share", found=found) from error

    def free(self) -> None:
        if self._handle != MPI.COMM_NULL:
            with self._guarded("free"):
                self._handle.Free()

    def _guarded(self, verb: str) -> AbstractContextManager[None]:
        """Return a context for calls that wait inside the library."""
        if not _watchdogs:
            return nullcontext()
        return _watchdogs[-1].guarding(Joint(self, MPI.REQUEST_NULL, verb), self.world_ranks)

    def abort(self, code: int) -> NoReturn:
        abort(code)

    def wait_for(self, work: Work) -> None:
        start = time.monotonic()
        while not work.test():
            os.sched_yield()
            if time.monotonic() - start > PATIENCE:
                self._wait_long(work, start)
                return

    def _wait_long(self, work: Work, start: float) -> None:
        shared, looked = self._shared, 0.0
        with shared.whereabouts.waiting():
            while not work.test():
                if time.monotonic() - looked > _LOOK:
                    shared.whereabouts.wait(work, start, [self.world_ranks[peer] for peer in work.peers])
                    shared.departures.check(work, self.world_ranks, shared.whereabouts.step)
                    if not shared.departures.recent:  # else a rank that waits for who has left will say so
                        for watchdog in _watchdogs:
                            watchdog.check(work, start)
                    looked = time.monotonic()
                time.sleep(NAP)

    @contextmanager
    def watched(self, seconds: float) -> Iterator[None]:
        if self.size < 2:
            yield
            return
        if _watchdogs:
            with _watchdogs[-1].limited(seconds):
                yield
            return
        _watchdogs.append(Watchdog(self, self.world_ranks, self._shared.whereabouts, seconds))
        try:
            yield
        except BaseException:
            _watchdogs[-1].say_farewell()  # the job is about to end, and that is no crash
            raise
        finally:
            _watchdogs.pop().end()

    def begin(self, what: object) -> None:
        self._shared.whereabouts.begin(what)

    def begin_step(self, step: int) -> None:
        self._shared.whereabouts.step = step


@dataclass(frozen=True)
class Shared:
    """What all groups of a job share.

    Attributes
    ----------
    nodes : sequence of int
        A name of each rank's machine, in the order of MPI's world.
    crowded : bool
        See `Communicator`.
    departures : Departures
        Tells who has left the job.
    whereabouts : Whereabouts
        This rank's.
    """

    nodes: Sequence[int]
    crowded: bool
    departures: Departures
    whereabouts: Whereabouts = field(default_factory=Whereabouts)


def abort(code: int) -> NoReturn:
    """End all processes of the job with this exit code. Local."""
    for watchdog in _watchdogs:
        watchdog.say_farewell()
    flush_output()
    # The launcher stops passing output on as soon as it hears of the abort.
    time.sleep(_LAST_WORDS)
    # The library would add a line of its own, which says less than ours.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)
    MPI.COMM_WORLD.Abort(code)
