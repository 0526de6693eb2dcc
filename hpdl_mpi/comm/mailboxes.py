"""Messages between the ranks of one process, and the watch over ranks that wait.

The watch is exact. A rank waits only for messages and for what others write into memory that they share. So when all
ranks wait or have ended, no message is on its way, and none has got any further since all have looked, none can ever go
on.
"""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from hpdl_mpi.base.errors import TrainingError
from hpdl_mpi.comm.communicator import Work
from hpdl_mpi.comm.faults import Fault, FaultPlan, RankKilled
from hpdl_mpi.comm.whereabouts import Whereabouts, describe

Mailbox = tuple[Hashable, int, int, int]
"""(context, source, dest, tag); ranks are those of the world."""

_LOOK_SECONDS = 1e-4
"""Between looks at memory that ranks share."""

Take = Callable[[np.ndarray], None]
"""Is given the bytes of a message, in the thread of the rank that receives it."""


class Mailboxes:
    """What the ranks of one world share: messages on their way, and who runs, waits, has ended or failed.

    Parameters
    ----------
    num_ranks : int
        How many ranks there are.
    faults : sequence of Fault, optional
        What goes wrong.
    nodes : sequence of int, optional
        The machine that each rank is said to run on; one for all by default.
    """

    def __init__(self, num_ranks: int, faults: Sequence[Fault] = (), nodes: Sequence[int] | None = None) -> None:
        self.num_ranks = num_ranks
        self.nodes = list(nodes) if nodes is not None else [0] * num_ranks
        self._lock = threading.Lock()
        self._shared: dict[Hashable, list[np.ndarray | None]] = {}
        self._failure: tuple[str, BaseException | None] | None = None
        self._faults = FaultPlan(faults)
        self._news = [threading.Condition(self._lock) for _ in range(num_ranks)]
        self._arrived = [0] * num_ranks
        self._messages: defaultdict[Mailbox, deque[tuple[float, np.ndarray]]] = defaultdict(deque)
        self._receives: defaultdict[Mailbox, deque[Take]] = defaultdict(deque)
        self._last_arrival = [0.0] * num_ranks
        self._last_progress = 0.0
        self._waiting: dict[int, tuple[Work, float]] = {}  # what for, and when it last was not over
        self.limits = [math.inf] * num_ranks
        """Seconds that each rank may wait."""
        self.whereabouts = [Whereabouts() for _ in range(num_ranks)]
        self._ended: dict[int, str] = {}

    def share(self, place: Hashable, size: int) -> list[np.ndarray | None]:
        """Return the list, the same for all ranks, of what a group shares at this place."""
        with self._lock:
            return self._shared.setdefault(place, [None] * size)

    def verb(self, rank: int) -> None:
        """Raise if this rank is to be killed, or another one has failed."""
        with self._lock:
            self._faults.strike(rank)
            self._check_failure(rank)

    def _check_failure(self, rank: int) -> None:
        if self._failure is not None:
            what, cause = self._failure
            raise TrainingError(what, where=f"rank {rank}") from cause

    def deposit(self, box: Mailbox, message: np.ndarray) -> None:
        """Put a message on its way; the array is now the mailbox's own."""
        _, source, dest, _ = box
        with self._lock:
            delay = self._faults.fate(source, dest)
            if delay is None:
                return
            arrival = time.monotonic() + delay
            self._last_arrival[dest] = max(self._last_arrival[dest], arrival)
            self._messages[box].append((arrival, message))
            self._arrived[dest] += 1
            self._waiting.pop(dest, None)
            self._news[dest].notify()

    def post(self, box: Mailbox, take: Take) -> None:
        """Ask for the next message of a mailbox that nobody asked for before."""
        with self._lock:
            self._receives[box].append(take)

    def deliver(self, box: Mailbox) -> None:
        """Hand the messages that have arrived to those who asked, both in their order; called by the receiving rank."""
        with self._lock:
            messages, receives = self._messages[box], self._receives[box]
            while messages and receives and messages[0][0] <= time.monotonic():
                receives.popleft()(messages.popleft()[1])

    def wait_for(self, work: Work, rank: int) -> None:
        """Block a rank until its work is over, and raise when nothing can ever finish it."""
        began = time.monotonic()
        with self._lock:
            self._last_progress = began  # it may have written for others until now
        progress = work.progress
        while True:
            arrived, tested = self._arrived[rank], time.monotonic()
            if work.test():
                return
            with self._lock:
                self._check_failure(rank)
                if work.progress != progress:
                    progress, self._last_progress = work.progress, time.monotonic()
                if self._arrived[rank] != arrived:
                    continue
                self._waiting[rank] = work, tested
                if self._all_stuck():
                    self._fail(f"no rank can go on:\n{self.positions()}")
                    self._check_failure(rank)
                if tested - began > self.limits[rank]:
                    self._fail(f"rank {rank} has waited {self.limits[rank]} s:\n{self.positions()}")
                    self._check_failure(rank)
                late = self._last_arrival[rank] - tested
                limit = late if late > 0 else min(self.limits[rank], threading.TIMEOUT_MAX)
                # Nobody tells of what is written into shared memory.
                self._news[rank].wait(limit if progress is None else _LOOK_SECONDS)
                self._waiting.pop(rank, None)

    def _all_stuck(self) -> bool:
        """Whether all ranks wait or have ended, and none has a message that it has not seen."""
        seen = all(
            tested >= max(self._last_arrival[rank], self._last_progress * (work.progress is not None))
            for rank, (work, tested) in self._waiting.items()
        )
        return seen and len(self._waiting) + len(self._ended) == self.num_ranks

    def positions(self) -> str:
        """Say what every rank does, one line each."""
        states = {rank: f"waits: {describe(work)}" for rank, (work, _) in self._waiting.items()} | self._ended
        steps = [f" (step {place.step})" if place.step else "" for place in self.whereabouts]
        return "\n".join(f"  rank {rank} {states.get(rank, 'runs')}{step}" for rank, step in enumerate(steps))

    def end(self, rank: int, error: BaseException | None) -> None:
        """Note that a rank's function has returned or raised."""
        with self._lock:
            self._ended[rank] = "has returned" if error is None else f"has raised {error!r}"
            if isinstance(error, RankKilled):
                self._ended[rank] = "was killed"
            elif error is not None:
                self._fail(f"rank {rank} failed: {error!r}", error)
            self._last_progress = time.monotonic()  # it may have written for others until now
            self._waiting.clear()
            self._notify_all()

    def fail(self, what: str) -> None:
        """Make every rank raise at its next verb."""
        with self._lock:
            self._fail(what)

    def _fail(self, what: str, cause: BaseException | None = None) -> None:
        if self._failure is None:
            self._failure = what, cause
        self._notify_all()

    def _notify_all(self) -> None:
        for condition in self._news:
            condition.notify()
