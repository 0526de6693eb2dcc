"""Where a rank is in its work: what it shows to those who ask why nothing goes on."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from hpdl_mpi.comm.communicator import Work

_MOST_CHARACTERS = 200
"""Of what a rank says that it does: it has to fit in a datagram."""

_MOST_PEERS = 16


class Position(NamedTuple):
    """Where a rank is.

    Attributes
    ----------
    step : int
        Of training; 0 before the first one.
    operation : int
        How many collectives and actions of a pipeline it has begun.
    doing : str
        What it waits for, or what it has begun last.
    waited : float
        Seconds; 0 if it does not wait.
    peers : tuple of int
        Whom it waits for, some of them where they are many.
    """

    step: int
    operation: int
    doing: str
    waited: float
    peers: tuple[int, ...]

    def __str__(self) -> str:
        place = f"step {self.step}, operation {self.operation}"
        if not self.waited:
            return f"{place}: at work" + (f", after {self.doing}" if self.doing else "")
        return f"{place}: waits {self.waited:.0f} s for {name_ranks(self.peers)}: {self.doing}"


class Whereabouts:
    """Keeps a rank's position, at next to no cost. Threads that begin operations do so one at a time; any may read."""

    def __init__(self) -> None:
        self.step = 0
        self._operation = 0
        self._begun: object = ""
        self._wait: tuple[str, float, tuple[int, ...]] | None = None

    def begin(self, what: object) -> None:
        """Count an operation that begins; `what` says as text what it is, at any time, and in any thread."""
        self._operation += 1
        self._begun = what

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Note that a wait ends, however it does."""
        try:
            yield
        finally:
            self._wait = None

    def wait(self, work: Work, since: float, peers: Sequence[int]) -> None:
        """Note what this rank waits for."""
        self._wait = describe(work)[:_MOST_CHARACTERS], since, tuple(peers[:_MOST_PEERS])

    def position(self) -> Position:
        """Return where the rank is now."""
        wait = self._wait
        if wait is None:
            return Position(self.step, self._operation, str(self._begun)[:_MOST_CHARACTERS], 0.0, ())
        said, since, peers = wait
        return Position(self.step, self._operation, said, time.monotonic() - since, peers)


def describe(work: Work) -> str:
    """Return what some work is for, and what it does."""
    return f"{work.label} ({work})" if work.label else str(work)


def name_ranks(ranks: Sequence[int]) -> str:
    """Return "rank 2", "ranks 0 and 2", "ranks 0, 1 and 2"."""
    names = [str(rank) for rank in ranks]
    if len(names) == 1:
        return f"rank {names[0]}"
    return f"ranks {', '.join(names[:-1])} and {names[-1]}" if names else "nobody"


def explain(positions: Mapping[int, Position], ranks: Sequence[int]) -> str:
    """Say who holds all up; see `find_late`."""
    late = find_late(positions, ranks)
    verb = "is" if len(late) == 1 else "are"
    if any(rank not in positions or not positions[rank].waited for rank in ranks):
        return f"{name_ranks(late)} {verb} late"
    mismatch = "all wait for one another, so they do not make the same calls"
    return f"{mismatch}; {name_ranks(late)} {verb} in another step" if late else mismatch


def find_late(positions: Mapping[int, Position], ranks: Sequence[int]) -> list[int]:
    """Return the ranks that hold all up: others wait for them, and they for nobody.

    Parameters
    ----------
    positions : mapping of int to Position
        Of the ranks that have answered.
    ranks : sequence of int
        All there are.

    Returns
    -------
    list of int
        Where all wait, those that are in another step than most; nobody if all are in one.
    """
    awaited = {peer for position in positions.values() for peer in position.peers}
    idle = [rank for rank in ranks if rank not in positions or not positions[rank].waited]
    if idle:
        return [rank for rank in idle if rank in awaited] or idle
    [(usual, _)] = Counter(position.step for position in positions.values()).most_common(1)
    return sorted(rank for rank, position in positions.items() if position.step != usual)
