"""Collectives as data: what each rank sends, receives, reads and adds, in which order.

A collective works in place on one array per rank; the arrays of all ranks have the same length. A `Program` is the
list of rounds of one rank, and a `Round` is of one of two kinds:

- Messages. A `Step` moves the elements [start, stop) of one rank's array to the same elements of another's. The steps
  of a round start together and the round is over when all of them are, so none may touch what another one writes, and a
  peer gets and gives one message at most. One exception: what is received to be added is kept aside until a send of
  the same elements, to the same peer, has left: two ranks can exchange what they have and both add.
- Shared memory, between ranks of one machine. Each rank has a `window` that its peers read and write. Elements
  [start, stop) of the array are those at ``place`` and on of a window. The steps are done one after the other; SIGNAL
  and WAIT order what ranks do, as a semaphore for each pair of them.

Where the array itself lies in the window (``place`` is ``start``), nothing need be copied there. Else a window is kept
twice and a collective that is called again takes the two in turn, so that a rank may begin while others still read what
it left in the run before.

Programs can be printed, proved (`check`), timed on paper (`predict`) and run (`execute`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum


class Op(Enum):
    """What a step does with its elements."""

    SEND = "send"
    RECV = "recv"
    RECV_REDUCE = "recv_reduce"
    COPY = "copy"
    """From the array to this rank's window."""
    READ = "read"
    """From a peer's window, or this rank's own, to the array."""
    READ_REDUCE = "read_reduce"
    """Add what is in a window to the array."""
    WRITE = "write"
    """From the array to a peer's window."""
    SIGNAL = "signal"
    WAIT = "wait"

    @property
    def is_message(self) -> bool:
        """Whether the step is a message; if not, it is one on shared memory."""
        return self in (Op.SEND, Op.RECV, Op.RECV_REDUCE)

    @property
    def writes(self) -> bool:
        """Whether the step changes this rank's array."""
        return self in (Op.RECV, Op.RECV_REDUCE, Op.READ, Op.READ_REDUCE)


@dataclass(frozen=True, slots=True)
class Step:
    """The elements [start, stop) go to, or come from, rank `peer`; of its window, those at `place` and on."""

    op: Op
    start: int
    stop: int
    peer: int
    place: int = 0

    @property
    def size(self) -> int:
        """How many elements are moved."""
        return self.stop - self.start

    def among(self, world_ranks: Sequence[int]) -> Step:
        """Return the step with its peer called as in the job, to be shown."""
        return replace(self, peer=world_ranks[self.peer])

    def __str__(self) -> str:
        if self.op in (Op.SIGNAL, Op.WAIT):
            return f"{self.op.value} {'to' if self.op is Op.SIGNAL else 'for'} rank {self.peer}"
        rank = f"{'to' if self.op in (Op.SEND, Op.WRITE) else 'from'} rank {self.peer}"
        text = f"{self.op.value} [{self.start}, {self.stop})"
        if self.op is Op.COPY:
            return f"{text} to window at {self.place}"
        return f"{text} {rank}" if self.op.is_message else f"{text} {rank}'s window at {self.place}"


Round = tuple[Step, ...]
Program = list[Round]


def is_shared(steps: Round) -> bool:
    """Return whether a round is one on shared memory."""
    return bool(steps) and not steps[0].op.is_message


def window_size(programs: Sequence[Program]) -> int:
    """Return how many elements of a window the programs use at most."""
    moving = (Op.COPY, Op.READ, Op.READ_REDUCE, Op.WRITE)
    places = (
        step.place + step.size for program in programs for steps in program for step in steps if step.op in moving
    )
    return max(places, default=0)
