"""What can be made to go wrong between the ranks of `run_threads`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpdl_mpi.base.errors import TrainingError


@dataclass(frozen=True)
class Delay:
    """Every message from one rank to another comes this late."""

    source: int
    dest: int
    seconds: float


@dataclass(frozen=True)
class Drop:
    """The message of this index, counted from 0, from one rank to another is lost."""

    source: int
    dest: int
    index: int = 0


@dataclass(frozen=True)
class Kill:
    """The rank raises `RankKilled` at its send or receive of this index, counted from 0, and never answers again."""

    rank: int
    index: int = 0


Fault = Delay | Drop | Kill


class RankKilled(TrainingError):
    """This rank was to be killed; the others learn nothing of it."""


class FaultPlan:
    """Decides the fate of messages and ranks by counting; its caller keeps threads apart.

    Parameters
    ----------
    faults : sequence of Fault
        What goes wrong; ranks are those of the world.
    """

    def __init__(self, faults: Sequence[Fault] = ()) -> None:
        self._delays = {(fault.source, fault.dest): fault.seconds for fault in faults if isinstance(fault, Delay)}
        self._drops = {(fault.source, fault.dest, fault.index) for fault in faults if isinstance(fault, Drop)}
        self._kills = {(fault.rank, fault.index) for fault in faults if isinstance(fault, Kill)}
        self._messages: dict[tuple[int, int], int] = {}
        self._verbs: dict[int, int] = {}

    def strike(self, rank: int) -> None:
        """Count a send or receive of a rank; raise RankKilled if it is that rank's last."""
        index = self._verbs.get(rank, 0)
        self._verbs[rank] = index + 1
        if (rank, index) in self._kills:
            raise RankKilled("killed by the plan of faults", where=f"rank {rank}")

    def fate(self, source: int, dest: int) -> float | None:
        """Count a message; return the seconds that it comes late, or None if it is lost."""
        index = self._messages.get((source, dest), 0)
        self._messages[source, dest] = index + 1
        return None if (source, dest, index) in self._drops else self._delays.get((source, dest), 0.0)
