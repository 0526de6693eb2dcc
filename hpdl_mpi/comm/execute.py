"""Runs a rank's program on its array: prepared once, called many times.

Messages are cut into segments so that one is added while the next is on its way, and while it is still in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import DTypeLike

from hpdl_mpi.base.memory import aligned
from hpdl_mpi.comm.communicator import COLLECTIVE_TAG, Communicator, Transfer, Work, check_array
from hpdl_mpi.comm.schedule import Op, Program, Step
from hpdl_mpi.kernels.elementwise import add

SEGMENT_BYTES = 1 << 21
"""The length of a segment. Both ends of a message cut it alike, so all ranks must use the same."""

WINDOW = 2
"""How many segments of one reduction may be on their way at once."""


def compile_reduction(dtype: DTypeLike) -> None:
    """Add arrays of this dtype once, so that no call of a `Collective` waits for the compiler. Local."""
    array = np.zeros(1, dtype)
    add(array, array, array)


class Collective(Work):
    """One rank's part in a collective on one array. Prepared once; then each call runs it and allocates no array.

    Parameters
    ----------
    comm : Communicator
        The ranks that take part; program r is run by rank r.
    program : Program
        This rank's program.
    array : ndarray, 1-dimensional, float32 or float64
        What the collective works on, in place; the caller owns it and keeps it alive.
    tag : int, optional
        Keeps apart collectives that are under way at the same time on one communicator. The default keeps one apart
        from all other messages.
    segment_bytes : int, optional
        Where messages are cut; the same on all ranks.

    Notes
    -----
    ``collective()`` blocks. Else `start` begins, `test` moves it along between other work, and `wait` finishes; the
    array must be left alone in between. All three are collective.
    """

    def __init__(
        self,
        comm: Communicator,
        program: Program,
        array: np.ndarray,
        *,
        tag: int = COLLECTIVE_TAG,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        check_array(array, written=True)
        if array.ndim != 1 or array.dtype not in (np.float32, np.float64):
            raise ValueError(f"a collective needs a flat float array; found shape {array.shape} of {array.dtype}")
        self.comm = comm
        length = max(1, segment_bytes // array.itemsize)
        # Receives are posted before sends, so that no message comes unexpected.
        order = [sorted(steps, key=lambda step: step.op is Op.SEND) for steps in program]
        size = max((_staging_size(steps, length) for steps in order), default=0)
        staging = aligned(size, array.dtype)
        self._rounds = [_streams(comm, steps, array, staging, tag, length) for steps in order]
        self._position = len(self._rounds)

    def __call__(self) -> None:
        """Run the collective and block until this rank's part is over."""
        self.start()
        self.wait()

    def start(self) -> None:
        """Begin; the run before must be over."""
        self._position = -1
        self._next_round()

    def _next_round(self) -> None:
        self._position += 1
        if self._position < len(self._rounds):
            for stream in self._rounds[self._position]:
                stream.start()

    def test(self) -> bool:
        while self._position < len(self._rounds):
            over = True
            for stream in self._rounds[self._position]:
                over &= stream.test()
            if not over:
                return False
            self._next_round()
        return True

    @property
    def peers(self) -> Sequence[int]:
        return [peer for stream in self._pending() for peer in stream.peers]

    def _pending(self) -> list[_Stream]:
        streams = self._rounds[self._position] if self._position < len(self._rounds) else []
        return [stream for stream in streams if not stream.over]

    def __str__(self) -> str:
        return f"rank {self.comm.rank}, round {self._position}: " + "; ".join(str(stream) for stream in self._pending())


class _Stream:
    """The segments of one step, some of them on their way at once.

    Parameters
    ----------
    step : Step
        What is done.
    transfers : sequence of Transfer
        One per segment.
    window : int
        How many may be on their way at once.
    arrived : callable, optional
        Takes the number of a segment that is over, before a further one is started.
    """

    def __init__(
        self,
        step: Step,
        transfers: Sequence[Transfer],
        window: int,
        arrived: Callable[[int], None] | None = None,
    ) -> None:
        self._step, self._transfers, self._window, self._arrived = step, transfers, window, arrived
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
            if not self._transfers[self._done].test():
                return False
            if self._arrived is not None:
                self._arrived(self._done)
            self._done += 1
            following = self._done - 1 + self._window
            if following < len(self._transfers):
                self._transfers[following].start()
        return True

    @property
    def peers(self) -> Sequence[int]:
        return (self._step.peer,)

    def __str__(self) -> str:
        return f"{self._step} ({self._done} of {len(self._transfers)} segments)"


def _segments(step: Step, length: int) -> list[tuple[int, int]]:
    """Cut a step's elements; nothing is left of an empty one, at either end of the message."""
    return [(start, min(start + length, step.stop)) for start in range(step.start, step.stop, length)]


def _staging_size(steps: Sequence[Step], length: int) -> int:
    """Return the number of elements that a round's reductions keep aside."""
    return sum(min(WINDOW * length, step.stop - step.start) for step in steps if step.op is Op.RECV_REDUCE)


def _streams(
    comm: Communicator, steps: Sequence[Step], array: np.ndarray, staging: np.ndarray, tag: int, length: int
) -> list[_Stream]:
    """Prepare the steps of one round, each reduction with a part of `staging` to itself."""
    streams = []
    for step in steps:
        parts = [array[start:stop] for start, stop in _segments(step, length)]
        if step.op is Op.SEND:
            sends = [comm.send_init(part, step.peer, tag) for part in parts]
            streams.append(_Stream(step, sends, window=len(sends)))
        elif step.op is Op.RECV:
            receives = [comm.recv_init(part, step.peer, tag) for part in parts]
            streams.append(_Stream(step, receives, window=len(receives)))
        else:
            slots = [staging[index % WINDOW * length :][: part.size] for index, part in enumerate(parts)]
            staging = staging[min(WINDOW * length, step.stop - step.start) :]
            receives = [comm.recv_init(slot, step.peer, tag) for slot in slots]
            streams.append(_Stream(step, receives, WINDOW, _adder(parts, slots)))
    return streams


def _adder(totals: Sequence[np.ndarray], terms: Sequence[np.ndarray]) -> Callable[[int], None]:
    def add_segment(index: int) -> None:
        add(totals[index], terms[index], totals[index])

    return add_segment
