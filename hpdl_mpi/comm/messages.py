"""Runs a round of messages.

Messages are cut into segments so that one is added while the next is on its way, and while it is still in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hpdl_mpi.comm.communicator import Communicator, Transfer
from hpdl_mpi.comm.schedule import Op, Round, Step
from hpdl_mpi.kernels.elementwise import add

SEGMENT_BYTES = 1 << 21
"""The length of a segment. Both ends of a message cut it alike, so all ranks must use the same."""

_WINDOW = 2
"""How many segments of one reduction may be on their way at once."""


class Messages:
    """A round of messages, under way at once.

    Parameters
    ----------
    comm : Communicator
    number : int
        Of the round, in its program.
    steps : Round
    array : ndarray
        What the program works on.
    staging : ndarray
        At least `staging_size` elements, of the same dtype, for what is received to be added; rounds that do not run
        at once may have it together.
    tag : int
    length : int
        Elements of a segment.
    """

    def __init__(
        self,
        comm: Communicator,
        number: int,
        steps: Round,
        array: np.ndarray,
        staging: np.ndarray,
        tag: int,
        length: int,
    ) -> None:
        self._number = number
        sends: list[_Stream] = []
        receives: list[_Stream] = []
        for step in sorted(steps, key=lambda step: step.op is not Op.SEND):
            parts = [array[start:stop] for start, stop in _segments(step, length)]
            if step.op is Op.SEND:
                sends.append(_Stream(step, [comm.send_init(part, step.peer, tag) for part in parts]))
            elif step.op is Op.RECV:
                receives.append(_Stream(step, [comm.recv_init(part, step.peer, tag) for part in parts]))
            else:
                exchanged = next((send for send in sends if _exchanged(send.step, step)), None)
                size = _kept_aside(step, steps, length)
                slots = [staging[index * length % max(size, 1) :][: part.size] for index, part in enumerate(parts)]
                staging = staging[size:]
                transfers = [comm.recv_init(slot, step.peer, tag) for slot in slots]
                receives.append(_Stream(step, transfers, _adder(parts, slots), exchanged))
        # Receives are posted before sends, so that no message comes unexpected.
        self._streams = [*receives, *sends]

    def start(self, run: int) -> None:
        """Begin; the run before must be over."""
        for stream in self._streams:
            stream.start()

    def test(self) -> bool:
        """Move all along without blocking and say whether the round is over."""
        over = True
        for stream in reversed(self._streams):
            over &= stream.test()
        return over

    @property
    def peers(self) -> Sequence[int]:
        """Whom it waits for."""
        return [stream.step.peer for stream in self._streams if not stream.over]

    def __str__(self) -> str:
        return f"round {self._number}: " + "; ".join(str(stream) for stream in self._streams if not stream.over)


def staging_size(steps: Round, length: int) -> int:
    """Return the number of elements that a round keeps aside."""
    return sum(_kept_aside(step, steps, length) for step in steps if step.op is Op.RECV_REDUCE)


class _Stream:
    """The segments of one step.

    Parameters
    ----------
    step : Step
        What is done.
    transfers : sequence of Transfer
        One per segment.
    arrived : callable, optional
        Takes the number of a segment that is over; then few are on their way at once.
    after : _Stream, optional
        Whose segment of the same number must be over too before `arrived` is called; then all are on their way at once.
    """

    def __init__(
        self,
        step: Step,
        transfers: Sequence[Transfer],
        arrived: Callable[[int], None] | None = None,
        after: _Stream | None = None,
    ) -> None:
        self.step = step
        self._transfers, self._arrived, self._after = transfers, arrived, after
        self._window = _WINDOW if arrived and not after else len(transfers)
        self._done = len(transfers)

    def start(self) -> None:
        self._done = 0
        for transfer in self._transfers[: self._window]:
            transfer.start()

    @property
    def over(self) -> bool:
        return self._done == len(self._transfers)

    def test(self) -> bool:
        while self._done < len(self._transfers):
            if self._after and self._after._done <= self._done:
                return False
            if not self._transfers[self._done].test():
                return False
            if self._arrived is not None:
                self._arrived(self._done)
            self._done += 1
            following = self._done - 1 + self._window
            if following < len(self._transfers):
                self._transfers[following].start()
        return True

    def __str__(self) -> str:
        return f"{self.step} ({self._done} of {len(self._transfers)} segments)"


def _segments(step: Step, length: int) -> list[tuple[int, int]]:
    """Cut a step's elements; nothing is left of an empty one, at either end of the message."""
    return [(start, min(start + length, step.stop)) for start in range(step.start, step.stop, length)]


def _kept_aside(step: Step, steps: Round, length: int) -> int:
    """Return how many elements a reduction keeps aside: all of them if they wait until others have left."""
    exchanges = any(_exchanged(other, step) for other in steps)
    return step.size if exchanges else min(_WINDOW * length, step.size)


def _exchanged(send: Step, reduction: Step) -> bool:
    """Return whether elements are sent to the peer whose own are added to them."""
    same = (send.start, send.stop, send.peer) == (reduction.start, reduction.stop, reduction.peer)
    return same and send.op is Op.SEND


def _adder(totals: Sequence[np.ndarray], terms: Sequence[np.ndarray]) -> Callable[[int], None]:
    def add_segment(index: int) -> None:
        add(totals[index], terms[index], totals[index])

    return add_segment
