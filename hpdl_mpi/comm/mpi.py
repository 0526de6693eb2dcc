"""The ranks are processes of one MPI job. Nothing outside this folder knows mpi4py.

Blocking verbs poll non-blocking ones here rather than wait inside the library, so that a waiting rank gives its core
away when ranks share one, answers signals, and notices a peer that has left the job.
"""

from __future__ import annotations

import atexit
import math
import os
import socket
import sys
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
from mpi4py import MPI

from hpdl_mpi.base.errors import InputError, TrainingError
from hpdl_mpi.base.output import flush_output
from hpdl_mpi.comm.collectives import LIBRARY
from hpdl_mpi.comm.communicator import (
    PAGE,
    Communicator,
    Transfer,
    Window,
    Work,
    as_bytes,
    check_array,
    check_message,
    describe_collective,
)
from hpdl_mpi.comm.watchdog import Watchdog
from hpdl_mpi.comm.whereabouts import Whereabouts, name_ranks
from hpdl_mpi.kernels.threads import available_cores

PATIENCE = 1.0
"""Seconds of waiting after which a rank sleeps between polls and asks whether its peers are still there."""

GRACE = 3.0
"""Seconds that the last messages of a rank that has left may take to arrive."""

_SHARED_FOLDER = "/dev/shm"
_NAP = 1e-4
_LOOK = 0.01
"""Seconds between the times that a rank which waits long asks after others."""

_PARTING_SECONDS = 60.0
"""That ranks which have ended their programs wait for others before one says so."""

_LAST_WORDS = 0.25
_NOTICE = 0.5
"""Seconds that one rank may notice later than another that a third one has left."""


_watchdogs: list[Watchdog] = []
"""The one that watches over this job, while it does."""


_abandoned: list[MPI.Prequest] = []


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
        return _Message(self, self._handle.Isend(_spec(array), dest, tag), "send", array.nbytes, dest, tag)

    def irecv(self, array: np.ndarray, source: int, tag: int = 0) -> Work:
        check_message(array, source, self.size, written=True)
        return _Message(self, self._handle.Irecv(_spec(array), source, tag), "recv", array.nbytes, source, tag)

    def send_init(self, array: np.ndarray, dest: int, tag: int = 0) -> Transfer:
        check_message(array, dest, self.size)
        return _Prepared(self, self._handle.Send_init(_spec(array), dest, tag), "send", array.nbytes, dest, tag)

    def recv_init(self, array: np.ndarray, source: int, tag: int = 0) -> Transfer:
        check_message(array, source, self.size, written=True)
        return _Prepared(self, self._handle.Recv_init(_spec(array), source, tag), "recv", array.nbytes, source, tag)

    def _allgather(self, array: np.ndarray, out: np.ndarray) -> None:
        self.wait_for(_Joint(self, self._handle.Iallgather(_spec(array), _spec(out)), "allgather"))

    def barrier(self) -> None:
        self.begin_collective("barrier")
        self.wait_for(_Joint(self, self._handle.Ibarrier(), "barrier"))

    def allreduce_init(self, array: np.ndarray, label: str = "") -> Transfer:
        check_array(array, written=True)
        return _LibraryAllreduce(self, self._handle, array, label)

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
                return _SharedWindow(self, self._handle, -(-nbytes // PAGE) * PAGE)
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
        return _watchdogs[-1].guarding(_Joint(self, MPI.REQUEST_NULL, verb), self.world_ranks)

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
                    shared.departures.check(work, self.world_ranks)
                    if not shared.departures.recent:  # else a rank that waits for who has left will say so
                        for watchdog in _watchdogs:
                            watchdog.check(work, start)
                    looked = time.monotonic()
                time.sleep(_NAP)

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


class Departures:
    """Who has left the job: each rank tells all others when its program ends.

    MPI ends only when every rank comes to its end, so a rank that leaves early (``sys.exit`` in a script, say) would
    otherwise be waited for without end, by ranks that cannot know.

    Parameters
    ----------
    handle : MPI.Intracomm
        All ranks of the job, on a communicator for this purpose alone.
    """

    def __init__(self, handle: MPI.Intracomm) -> None:
        self._handle = handle
        self._process = os.getpid()
        self._left = False
        self._noticed: dict[int, float] = {}
        self._nothing = np.empty(0, np.uint8)

    def _listen(self) -> None:
        status = MPI.Status()
        while self._handle.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG, status):
            self._handle.Recv(self._nothing, status.source)
            self._noticed[status.source] = time.monotonic()

    def check(self, work: Work, world_ranks: Sequence[int]) -> None:
        """Raise TrainingError if a peer that `work` waits for has left and can have nothing under way any more."""
        self._listen()
        for peer in work.peers:
            rank = world_ranks[peer]
            if rank in self._noticed and time.monotonic() - self._noticed[rank] > GRACE:
                raise TrainingError(
                    f"rank {rank} has ended its program; this rank still waited for it",
                    where=work,
                    remedy="Every rank must make the same calls; look for the reason in what that rank printed",
                )

    @property
    def recent(self) -> bool:
        """Whether a rank has left, and those that wait for it may not have said so yet."""
        return any(time.monotonic() - noticed < GRACE + _NOTICE for noticed in self._noticed.values())

    def leave(self) -> None:
        """Tell the others, and wait until all have left: MPI may end then. Collective, once."""
        if self._left or os.getpid() != self._process or MPI.Is_finalized():
            return
        self._left = True
        others = [rank for rank in range(self._handle.size) if rank != self._handle.rank]
        farewells = [self._handle.Isend(self._nothing, rank) for rank in others]
        speaks_at = time.monotonic() + _PARTING_SECONDS
        while len(self._noticed) < len(others):
            self._listen()
            if time.monotonic() > speaks_at and self._handle.rank < min(self._noticed, default=self._handle.size):
                speaks_at = math.inf
                staying = name_ranks([rank for rank in others if rank not in self._noticed])
                where = f"[rank {self._handle.rank} of {self._handle.size} on {socket.gethostname()}]"
                print(f"{where} has ended its program and waits for {staying} to do so.", file=sys.stderr, flush=True)
            time.sleep(_NAP)
        MPI.Request.Waitall(farewells)


class _Message(Work):
    """One message under way."""

    def __init__(self, comm: Communicator, request: MPI.Request, verb: str, nbytes: int, peer: int, tag: int) -> None:
        self.comm = comm
        self._request = request
        self._verb, self._nbytes, self._peer, self._tag = verb, nbytes, peer, tag
        self._status = MPI.Status() if verb == "recv" else None
        self._over = False

    def test(self) -> bool:
        if self._over:  # its status is gone
            return True
        over = _test(self._request, self, self._status)
        if over and self._status is not None and self._status.Get_count(MPI.BYTE) != self._nbytes:
            found = f"a message of {self._status.Get_count(MPI.BYTE)} bytes"
            raise TrainingError("ranks disagree on a message", where=self, found=found, expected=self._nbytes)
        self._over = over
        return over

    @property
    def peers(self) -> Sequence[int]:
        return (self._peer,)

    def __str__(self) -> str:
        towards = "to" if self._verb == "send" else "from"
        own, peer = (self.comm.world_ranks[rank] for rank in (self.comm.rank, self._peer))
        return f"rank {own}: {self._verb} of {self._nbytes} bytes {towards} rank {peer}, tag {self._tag}"


class _Prepared(_Message, Transfer):
    """One message that is started again and again."""

    _request: MPI.Prequest

    def __init__(self, comm: Communicator, request: MPI.Prequest, verb: str, nbytes: int, peer: int, tag: int) -> None:
        super().__init__(comm, request, verb, nbytes, peer, tag)
        self._over = True
        weakref.finalize(self, _free, request)

    def start(self) -> None:
        self._over = False
        self._request.Start()


class _Joint(Work):
    """One of the library's collectives under way, in which all must have come before anyone may go."""

    def __init__(self, comm: Communicator, request: MPI.Request, verb: str) -> None:
        self.comm = comm
        self._request, self._verb = request, verb

    def test(self) -> bool:
        return _test(self._request, self)

    @property
    def peers(self) -> Sequence[int]:
        return range(self.comm.size)

    def __str__(self) -> str:
        return f"rank {self.comm.world_ranks[self.comm.rank]}: {self._verb} of {self.comm.size} ranks"


class _LibraryAllreduce(_Joint, Transfer):
    """The library's sum of an array, again and again; planned once where the library can."""

    def __init__(self, comm: Communicator, handle: MPI.Intracomm, array: np.ndarray, label: str) -> None:
        super().__init__(comm, MPI.REQUEST_NULL, "allreduce")
        self.label = label
        self._handle, self._array = handle, array
        self._planned: MPI.Prequest | None = None
        if MPI.Get_version() >= (4, 0):
            self._planned = handle.Allreduce_init(MPI.IN_PLACE, array)
            weakref.finalize(self, _free, self._planned)
        self._said = describe_collective(label or "collective", array, LIBRARY)

    def start(self) -> None:
        self.comm.begin_collective(self._said)
        if self._planned is None:
            self._request = self._handle.Iallreduce(MPI.IN_PLACE, self._array)
        else:
            self._planned.Start()
            self._request = self._planned


class _SharedWindow(Window):
    """A window of MPI's shared memory."""

    def __init__(self, comm: MpiCommunicator, handle: MPI.Intracomm, nbytes: int) -> None:
        node = handle.Split_type(MPI.COMM_TYPE_SHARED)
        assert isinstance(node, MPI.Intracomm), "every rank is on a machine"
        self._guarded, self._node = comm._guarded, node
        try:
            # By default the parts are side by side, in the order of ranks.
            self._window = MPI.Win.Allocate_shared(nbytes, 1, comm=self._node)
        except MPI.Exception:
            self._node.Free()
            raise
        self._window.Lock_all()
        first, _ = self._window.Shared_query(0)
        memory = np.asarray(MPI.buffer.fromaddress(first.address, nbytes * node.size))
        self._divide(memory, comm.nodes, comm.node)

    def sync(self) -> None:
        self._window.Sync()

    def free(self) -> None:
        self.memory, self.parts = np.empty(0, np.uint8), []
        self._window.Unlock_all()
        with self._guarded("free of a window"):
            self._window.Free()
            self._node.Free()


def _spec(array: np.ndarray) -> list:
    """Describe the bytes of an array to mpi4py, whatever their dtype."""
    return [as_bytes(array), MPI.BYTE]


def _test(request: MPI.Request, work: Work, status: MPI.Status | None = None) -> bool:
    """Return whether the request of some work is over; explain what the library reports instead."""
    try:
        return request.Test(status)
    except MPI.Exception as error:
        raise TrainingError(f"the MPI library reports: {error.Get_error_string()}", where=work) from error


def _free(request: MPI.Prequest) -> None:
    """Free what is not under way; what an error has left under way goes on using its array, which it keeps alive."""
    if MPI.Is_finalized():
        return
    if request.Test():
        request.Free()
    else:
        _abandoned.append(request)


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
