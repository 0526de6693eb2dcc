"""The ranks are threads of one process, so a debugger can stop them all and no launcher is needed.

Sends are buffered: they are over at once. When no rank can ever go on, each raises and says what every rank waited for.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn, TypeVar

import numpy as np

from hpdl_mpi.base.errors import TrainingError
from hpdl_mpi.base.memory import heap
from hpdl_mpi.comm.communicator import Communicator, Transfer, Work, as_bytes, check_message
from hpdl_mpi.comm.faults import Fault, RankKilled
from hpdl_mpi.comm.mailboxes import Mailbox, Mailboxes
from hpdl_mpi.comm.window import PAGE, Window

Result = TypeVar("Result")


class ThreadCommunicator(Communicator):
    """A group of threads of this process; `run_threads` makes the first one.

    Parameters
    ----------
    mailboxes : Mailboxes
        What all ranks of the world share.
    rank : int
        This rank's number in the group.
    members : sequence of int, optional
        The group's ranks in the world; all of them by default.
    context : tuple of int, optional
        Keeps the messages of different groups apart.
    """

    def __init__(
        self, mailboxes: Mailboxes, rank: int, members: Sequence[int] | None = None, context: tuple[int, ...] = ()
    ) -> None:
        self._mailboxes = mailboxes
        self.world_ranks = list(members) if members is not None else list(range(mailboxes.num_ranks))
        self._context = context
        self._num_splits = self._num_windows = 0
        self.rank, self.size = rank, len(self.world_ranks)
        self.shares_process = self.crowded = mailboxes.num_ranks > 1
        self._place([mailboxes.nodes[member] for member in self.world_ranks])

    def _box(self, source: int, dest: int, tag: int) -> Mailbox:
        return self._context, self.world_ranks[source], self.world_ranks[dest], tag

    def isend(self, array: np.ndarray, dest: int, tag: int = 0) -> Work:
        check_message(array, dest, self.size)
        self._mailboxes.verb(self.world_ranks[self.rank])
        self._mailboxes.deposit(self._box(self.rank, dest, tag), as_bytes(array).copy())
        return _Sent(self, dest)

    def irecv(self, array: np.ndarray, source: int, tag: int = 0) -> Work:
        check_message(array, source, self.size, written=True)
        self._mailboxes.verb(self.world_ranks[self.rank])
        box = self._box(source, self.rank, tag)
        receive = _Receive(self, array, source, box)
        self._mailboxes.post(box, receive.take)
        return receive

    def send_init(self, array: np.ndarray, dest: int, tag: int = 0) -> Transfer:
        check_message(array, dest, self.size)
        return _Prepared(self, dest, lambda: self.isend(array, dest, tag))

    def recv_init(self, array: np.ndarray, source: int, tag: int = 0) -> Transfer:
        check_message(array, source, self.size, written=True)
        return _Prepared(self, source, lambda: self.irecv(array, source, tag))

    def split(self, color: int, key: int = 0) -> ThreadCommunicator:
        chosen = self.allgather_obj((color, key))
        ranks = sorted((key, rank) for rank, (other, key) in enumerate(chosen) if other == color)
        order = [rank for _, rank in ranks]
        context = (*self._context, self._num_splits, color)
        self._num_splits += 1
        return ThreadCommunicator(
            self._mailboxes, order.index(self.rank), [self.world_ranks[rank] for rank in order], context
        )

    def shareable_bytes(self) -> int:
        return sys.maxsize  # what threads share is memory like any other

    def share(self, nbytes: int) -> Window:
        place = self._context, self._num_windows
        self._num_windows += 1
        memories = self._mailboxes.share(place, self.num_nodes)
        if self.node_rank == 0:
            memories[self.node] = heap(-(-nbytes // PAGE) * PAGE * self.node_size)
        self.barrier()
        memory = memories[self.node]
        assert memory is not None, "the first rank of each machine has asked for it"
        return _ThreadWindow(memory, self.nodes, self.node)

    def free(self) -> None:
        """Nothing to give back: what a group has in memory goes with it."""

    def abort(self, code: int) -> NoReturn:
        raise TrainingError(f"aborted the job with exit code {code}", where=f"rank {self.world_ranks[self.rank]}")

    def deliver(self, box: Mailbox) -> None:
        """Hand on what has arrived in a mailbox of this rank."""
        self._mailboxes.deliver(box)

    def wait_for(self, work: Work) -> None:
        self._mailboxes.wait_for(work, self.world_ranks[self.rank])

    @contextmanager
    def watched(self, seconds: float) -> Iterator[None]:
        limits, rank = self._mailboxes.limits, self.world_ranks[self.rank]
        before, limits[rank] = limits[rank], min(limits[rank], seconds)
        try:
            yield
        finally:
            limits[rank] = before

    def begin(self, what: object) -> None:
        self._mailboxes.whereabouts[self.world_ranks[self.rank]].begin(what)

    def begin_step(self, step: int) -> None:
        self._mailboxes.whereabouts[self.world_ranks[self.rank]].step = step


class _ThreadWindow(Window):
    """Plain arrays: threads have one memory."""

    def __init__(self, memory: np.ndarray, nodes: Sequence[int], node: int) -> None:
        self._divide(memory, nodes, node)

    def sync(self) -> None:
        """Nothing to do."""

    def free(self) -> None:
        """Nothing to give back: what is in memory goes with its arrays."""


class _Sent(Work):
    """A message that its mailbox has copied."""

    def __init__(self, comm: Communicator, dest: int) -> None:
        self.comm = comm
        self._dest = dest

    def test(self) -> bool:
        return True

    @property
    def peers(self) -> Sequence[int]:
        return (self._dest,)


class _Receive(Work):
    """A message that is waited for."""

    comm: ThreadCommunicator

    def __init__(self, comm: ThreadCommunicator, array: np.ndarray, source: int, box: Mailbox) -> None:
        self.comm = comm
        self._array, self._source, self._box = array, source, box
        self._over = False
        self._found = array.nbytes

    def take(self, message: np.ndarray) -> None:
        """Copy the message into the array."""
        self._found = message.size
        if message.size == self._array.nbytes:
            as_bytes(self._array)[:] = message
        self._over = True

    def test(self) -> bool:
        if not self._over:
            self.comm.deliver(self._box)
        if self._found != self._array.nbytes:
            found = f"a message of {self._found} bytes"
            raise TrainingError("ranks disagree on a message", where=self, found=found, expected=self._array.nbytes)
        return self._over

    @property
    def peers(self) -> Sequence[int]:
        return (self._source,)

    def __str__(self) -> str:
        tag = self._box[-1]
        own, source = (self.comm.world_ranks[rank] for rank in (self.comm.rank, self._source))
        return f"rank {own}: recv of {self._array.nbytes} bytes from rank {source}, tag {tag}"


class _Prepared(Transfer):
    """A verb that is called again and again."""

    def __init__(self, comm: Communicator, peer: int, begin: Callable[[], Work]) -> None:
        self.comm = comm
        self._peer, self._begin = peer, begin
        self._work: Work = _Sent(comm, peer)

    def start(self) -> None:
        self._work = self._begin()

    def test(self) -> bool:
        return self._work.test()

    @property
    def peers(self) -> Sequence[int]:
        return (self._peer,)

    def __str__(self) -> str:
        return str(self._work)


def run_threads(
    num_ranks: int,
    function: Callable[[Communicator], Result],
    *,
    faults: Sequence[Fault] = (),
    nodes: Sequence[int] | None = None,
    timeout: float = 60.0,
) -> list[Result]:
    """Call ``function(comm)`` on every rank of a world of threads and return the results in the order of ranks.

    Parameters
    ----------
    num_ranks : int
        How many ranks to run.
    function : callable
        Takes this rank's Communicator.
    faults : sequence of Fault, optional
        What is to go wrong.
    nodes : sequence of int, optional
        The machine that each rank is said to run on; one for all by default.
    timeout : float, optional
        Seconds that all may take together.

    Returns
    -------
    list
        What the function returned on each rank.

    Raises
    ------
    BaseException
        What the first failing rank raised; the others were stopped at their next verb.
    TrainingError
        No rank could go on, a rank was killed, or time ran out; it says where every rank was.
    """
    mailboxes = Mailboxes(num_ranks, faults, nodes)
    results: dict[int, Result] = {}
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        error: BaseException | None = None
        try:
            results[rank] = function(ThreadCommunicator(mailboxes, rank))
        except BaseException as raised:  # noqa: BLE001  (raised again by run_threads)
            error = raised
            errors.append(raised)
        mailboxes.end(rank, error)

    threads = [
        threading.Thread(target=run, args=(rank,), name=f"rank {rank}", daemon=True) for rank in range(num_ranks)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if any(thread.is_alive() for thread in threads):
        mailboxes.fail("time ran out")
        raise TrainingError(f"ranks still ran after {timeout} s:\n{mailboxes.positions()}\n{_stacks(threads)}")
    if errors:
        # A killed rank is the cause only if nobody missed it.
        raise next((error for error in errors if not isinstance(error, RankKilled)), errors[0])
    return [results[rank] for rank in range(num_ranks)]


def _stacks(threads: Sequence[threading.Thread]) -> str:
    """Return the stacks of the threads that still run."""
    frames = sys._current_frames()
    alive = {thread.name: frames[thread.ident] for thread in threads if thread.ident in frames}
    return "\n".join(f"{name}:\n{''.join(traceback.format_stack(frame))}" for name, frame in alive.items())
