"""Collectives as data: what each rank sends, receives and adds, in which order.

A collective works in place on one array per rank; the arrays of all ranks have the same length. A `Program` is the
list of rounds of one rank. The steps of a `Round` start together and the round is over when all of them are, so none
may touch what another one writes, and a peer gets and gives one message at most. A `Step` moves the elements
[start, stop) of one rank's array to the same elements of another's. Programs can be printed, proved (`check`), and run
(`execute`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Op(Enum):
    """What a step does with its elements."""

    SEND = "send"
    RECV = "recv"
    RECV_REDUCE = "recv_reduce"

    @property
    def writes(self) -> bool:
        """Whether the step changes this rank's array."""
        return self is not Op.SEND


@dataclass(frozen=True, slots=True)
class Step:
    """One message: the elements [start, stop) go to, or come from, rank `peer`."""

    op: Op
    start: int
    stop: int
    peer: int

    def __str__(self) -> str:
        towards = "to" if self.op is Op.SEND else "from"
        return f"{self.op.value} [{self.start}, {self.stop}) {towards} rank {self.peer}"


Round = tuple[Step, ...]
Program = list[Round]
