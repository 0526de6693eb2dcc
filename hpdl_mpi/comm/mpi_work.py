"""What MPI has under way: messages, the library's own collectives, and windows of shared memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
from mpi4py import MPI

from hpdl_mpi.base.errors import TrainingError
from hpdl_mpi.comm.calls import describe_collective
from hpdl_mpi.comm.collectives import LIBRARY
from hpdl_mpi.comm.communicator import Communicator, Transfer, Work, as_bytes
from hpdl_mpi.comm.window import Window

_abandoned: list[MPI.Prequest] = []
"""What errors have left under way."""


class Message(Work):
    """One message under way."""

    def __init__(self, comm: Communicator, request: MPI.Request, verb: str, nbytes: int, peer: int, tag: int) -> None:
        self.comm = comm
        self._request = request
        self._verb, self._nbytes, self._peer, self._tag = verb, nbytes, peer, tag
        self._status = MPI.Status() if verb == "recv" else None
        self._over = False
        self._failure: TrainingError | None = None

    def test(self) -> bool:
        # Of what is over, and of what has failed, the library no longer knows.
        if self._failure is not None:
            raise self._failure
        if not self._over:
            try:
                self._over = self._arrives()
            except TrainingError as error:
                self._failure = error
                raise
        return self._over

    def _arrives(self) -> bool:
        over = _test(self._request, self, self._status)
        if over and self._status is not None and self._status.Get_count(MPI.BYTE) != self._nbytes:
            found = f"a message of {self._status.Get_count(MPI.BYTE)} bytes"
            raise TrainingError("ranks disagree on a message", where=self, found=found, expected=self._nbytes)
        return over

    @property
    def peers(self) -> Sequence[int]:
        return (self._peer,)

    def __str__(self) -> str:
        towards = "to" if self._verb == "send" else "from"
        own, peer = (self.comm.world_ranks[rank] for rank in (self.comm.rank, self._peer))
        return f"rank {own}: {self._verb} of {self._nbytes} bytes {towards} rank {peer}, tag {self._tag}"


class Prepared(Message, Transfer):
    """One message that is started again and again."""

    _request: MPI.Prequest

    def __init__(self, comm: Communicator, request: MPI.Prequest, verb: str, nbytes: int, peer: int, tag: int) -> None:
        super().__init__(comm, request, verb, nbytes, peer, tag)
        self._over = True
        weakref.finalize(self, _free, request)

    def start(self) -> None:
        self._over, self._failure = False, None
        self._request.Start()


class Joint(Work):
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


class LibraryAllreduce(Joint, Transfer):
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


class SharedWindow(Window):
    """A window of MPI's shared memory."""

    def __init__(
        self, comm: Communicator, handle: MPI.Intracomm, nbytes: int, guarded: Callable[[str], AbstractContextManager]
    ) -> None:
        node = handle.Split_type(MPI.COMM_TYPE_SHARED)
        assert isinstance(node, MPI.Intracomm), "every rank is on a machine"
        self._guarded, self._node = guarded, node
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


def bytes_spec(array: np.ndarray) -> list:
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
