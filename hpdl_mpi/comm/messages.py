"""Runs rounds of messages, segment by segment.

Messages are cut into segments, and each goes its own way: one is sent as soon as what it holds is there, though others
of its round, or of rounds before, are still on theirs; one that has come is added while the next is coming. So links
are busy all the time, where rounds that wait for one another would leave gaps.

What must wait for what follows from the program: whatever touches an element does so in the order of the rounds. Two
ranks see the messages between them in one order, so these need no names.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from hpdl_mpi.base.memory import aligned
from hpdl_mpi.base.trace import now
from hpdl_mpi.comm.communicator import Communicator, Transfer
from hpdl_mpi.comm.schedule import Op, Round, Step
from hpdl_mpi.kernels.elementwise import add
from hpdl_mpi.kernels.wire import Wire

SEGMENT_BYTES = 1 << 21
"""The length of a segment. Both ends of a message cut it alike, so all ranks must use the same."""

_SLOTS = 2
"""How many segments from one peer may be on their way at once to be added; they are received aside."""


Counts = Sequence[tuple[int, int]]
"""How many segments of a channel, by its number, must be over."""

Note = Callable[[int, int, float], None]
"""Is told of the rounds from one number to another, and since when they have been under way, as they end."""


class Messages:
    """Rounds of messages that follow one another.

    Parameters
    ----------
    comm : Communicator
    rounds : sequence of (int, Round)
        Each with its number in the program.
    array : ndarray
        What the program works on.
    tag : int
    length : int
        Elements of a segment.
    wire : Wire, optional
        How float32 travels in less; what is sent is rounded in the array, too, so that all ranks end with the same.
    """

    def __init__(
        self,
        comm: Communicator,
        rounds: Sequence[tuple[int, Round]],
        array: np.ndarray,
        tag: int,
        length: int,
        wire: Wire | None = None,
    ) -> None:
        receiving: dict[int, _Channel] = {}
        sending: dict[int, _Channel] = {}
        placed: list[_Placed] = []
        self._done: list[int] = []
        for number, steps in rounds:
            for step in steps:
                channels = sending if step.op is Op.SEND else receiving
                if step.peer not in channels:
                    channels[step.peer] = _Channel(step.peer, self._done, array.dtype, wire)
                placed.append(channels[step.peer].place(number, step, length))
        for one, others in _overlapping(placed):
            _prepare(comm, one, [other for other in others if one.follows(other)], array, tag, length, wire)
        self._placed, self._length, self._world_ranks = placed, length, comm.world_ranks
        self._log: RoundLog | None = None
        # What comes in is moved first: it may be what is to be sent on.
        self._channels = [*receiving.values(), *sending.values()]

    def record(self, note: Note | None) -> None:
        """See `RoundLog`; None to record no longer."""
        self._log = RoundLog(self._placed, self._length, note) if note else None

    def start(self, run: int) -> None:
        """Begin; the run before must be over."""
        for channel in self._channels:
            channel.begin()
        if self._log is not None:
            self._log.begin()
        self.test()

    def test(self) -> bool:
        """Move all along without blocking and say whether the rounds are over."""
        moved = True
        while moved:  # what has ended may let others start
            moved = False
            for channel in self._channels:
                if not channel.over and channel.move():
                    moved = True
            if moved and self._log is not None:
                self._log.look()
        return all(channel.over for channel in self._channels)

    @property
    def peers(self) -> Sequence[int]:
        """Whom it waits for."""
        return [channel.peer for channel in self._channels if channel.under_way]

    def __str__(self) -> str:
        return "; ".join(channel.describe(self._world_ranks) for channel in self._channels if channel.under_way)


@dataclass(slots=True)
class _Segment:
    """Part of a message.

    Attributes
    ----------
    number : int
        Of its round.
    step : Step
    transfer : Transfer
    before_start, before_end : Counts
        What must be over before this one may start, and before it may be added.
    part : array
        Of what the program works on.
    aside : array, optional
        What travels in its stead.
    before, after : callable, optional
        Called with both, before it starts and when it is over.
    """

    number: int
    step: Step
    transfer: Transfer = field(init=False)
    before_start: Counts = ()
    before_end: Counts = ()
    part: np.ndarray = field(init=False)
    aside: np.ndarray | None = None
    before: Callable | None = None
    after: Callable | None = None


class _Channel:
    """The segments from a peer, or to it, in order.

    Parameters
    ----------
    peer : int
    done : list of int
        How many segments of each channel are over, by its number, which this one's is added to.
    dtype : dtype
        Of the array.
    wire : Wire, optional
    """

    def __init__(self, peer: int, done: list[int], dtype: np.dtype, wire: Wire | None) -> None:
        self.peer = peer
        self._dtype = np.dtype(np.uint16) if wire else dtype
        self.number = len(done)
        self.segments: list[_Segment] = []
        self._started = 0
        self._done = done
        self._done.append(0)
        self._longest = 0
        self._aside: np.ndarray | None = None
        self._set_aside: list[int] = []

    def place(self, number: int, step: Step, length: int) -> _Placed:
        """Make room for a step's segments."""
        placed = _Placed(number, step, self, len(self.segments))
        self.segments += [_Segment(number, step) for _ in range(step.start, step.stop, length)]
        self._longest = max(self._longest, min(length, step.size))
        return placed

    def set_aside(self, index: int, part: np.ndarray) -> tuple[np.ndarray, Counts]:
        """Return what travels in the stead of `part`, and what must be over before it may be written."""
        if self._aside is None:
            self._aside = aligned(_SLOTS * self._longest, self._dtype)
        place = len(self._set_aside) % _SLOTS * self._longest
        before = [(self.number, self._set_aside[-_SLOTS] + 1)] if len(self._set_aside) >= _SLOTS else []
        self._set_aside.append(index)
        return self._aside[place : place + part.size], before

    @property
    def done(self) -> int:
        """How many segments are over."""
        return self._done[self.number]

    @property
    def started(self) -> int:
        """How many segments have started."""
        return self._started

    @property
    def over(self) -> bool:
        """Whether all segments are."""
        return self.done == len(self.segments)

    @property
    def under_way(self) -> bool:
        """Whether a segment has started that is not over."""
        return self.done < self._started

    def begin(self) -> None:
        """Get ready for another run."""
        self._started = self._done[self.number] = 0

    def move(self) -> bool:
        """End segments that have come or gone, start those that may, and say whether there were any."""
        # Short sums spend their time here, so there are no calls that could be done without.
        segments, number, done, started = self.segments, self.number, self.done, self._started
        before = done + started
        while done < started:
            segment = segments[done]
            if not (_reached(segment.before_end, self._done) and segment.transfer.test()):
                break
            if segment.after is not None:
                segment.after(segment.part, segment.aside)
            done += 1
            self._done[number] = done
        while started < len(segments) and _reached(segments[started].before_start, self._done):
            segment = segments[started]
            if segment.before is not None:
                segment.before(segment.part, segment.aside)
            segment.transfer.start()
            started += 1
        self._started = started
        return done + started > before

    def describe(self, world_ranks: Sequence[int]) -> str:
        """Say what is under way, with ranks called as in the job."""
        segment = self.segments[self.done]
        step = segment.step.among(world_ranks)
        return f"round {segment.number}: {step} ({self.done} of {len(self.segments)} segments)"


@dataclass(frozen=True, slots=True)
class _Placed:
    """A step, and the place of its first segment in a channel."""

    number: int
    step: Step
    channel: _Channel
    first: int

    def follows(self, other: _Placed) -> bool:
        """Return whether this step must wait until another has done with the elements that both touch.

        What is received to be added waits for its own round's sends, too.
        """
        mine, theirs = self.step.op, other.step.op
        if other.number == self.number:
            return mine is Op.RECV_REDUCE and theirs is Op.SEND
        return other.number < self.number and not (mine is theirs is Op.SEND)


class RoundLog:
    """Tells when rounds of messages begin and end.

    Messages of several rounds are on their way at once, so rounds overlap. One begins when a segment of it has started,
    and the rounds before have begun; it ends when all of its segments are over.

    Parameters
    ----------
    placed : sequence of _Placed
        All steps, in the order of their rounds.
    length : int
        Elements of a segment.
    note : callable
        Called as a round ends.
    """

    def __init__(self, placed: Sequence[_Placed], length: int, note: Note) -> None:
        self._note = note
        self._steps: dict[int, list[tuple[_Channel, int, int]]] = {}
        for one in placed:
            stop = one.first + len(range(one.step.start, one.step.stop, length))
            if stop > one.first:
                self._steps.setdefault(one.number, []).append((one.channel, one.first, stop))
        self._coming: deque[int] = deque()
        self._began: dict[int, float] = {}

    def begin(self) -> None:
        """Get ready for a run."""
        self._coming.extend(self._steps)

    def look(self) -> None:
        """Note which rounds have begun and which have ended since the last look."""
        while self._coming and any(channel.started > first for channel, first, _ in self._steps[self._coming[0]]):
            self._began[self._coming.popleft()] = now()
        for number in list(self._began):
            if all(channel.done >= stop for channel, _, stop in self._steps[number]):
                self._note(number, number, self._began.pop(number))


def _reached(counts: Counts, done: Sequence[int]) -> bool:
    for number, count in counts:  # noqa: SIM110 - a generator would take longer than all else here
        if done[number] < count:
            return False
    return True


def _overlapping(placed: Sequence[_Placed]) -> Iterator[tuple[_Placed, list[_Placed]]]:
    """Yield each step with all those that touch an element of its own, itself among them."""
    bounds = sorted({bound for one in placed for bound in (one.step.start, one.step.stop)})
    touching: list[dict[int, _Placed]] = [{} for _ in bounds]

    def cells(step: Step) -> range:
        return range(bisect_left(bounds, step.start), bisect_left(bounds, step.stop))

    for number, one in enumerate(placed):
        for cell in cells(one.step):
            touching[cell][number] = one
    for one in placed:
        yield (
            one,
            list({number: other for cell in cells(one.step) for number, other in touching[cell].items()}.values()),
        )


def _prepare(
    comm: Communicator,
    placed: _Placed,
    others: Sequence[_Placed],
    array: np.ndarray,
    tag: int,
    length: int,
    wire: Wire | None,
) -> None:
    """Fill in the segments of a step that follows others."""
    step, channel = placed.step, placed.channel
    for index, start in enumerate(range(step.start, step.stop, length), placed.first):
        part = array[start : min(start + length, step.stop)]
        needed = _needed(start, start + part.size, others, length)
        segment = channel.segments[index]
        segment.part = part
        sends, adds = step.op is Op.SEND, step.op is Op.RECV_REDUCE
        free: Counts = ()
        if wire or adds:
            segment.aside, free = channel.set_aside(index, part)
        # What is received aside may come before its place is free.
        waits = sends or segment.aside is None
        segment.before_start, segment.before_end = ((*free, *needed), ()) if waits else (free, needed)
        if wire:
            segment.before = wire.pack if sends else None
            segment.after = None if sends else wire.add if adds else wire.unpack
        elif adds:
            segment.after = _add
        prepare = comm.send_init if sends else comm.recv_init
        segment.transfer = prepare(part if segment.aside is None else segment.aside, step.peer, tag)


def _add(total: np.ndarray, term: np.ndarray) -> None:
    add(total, term, total)


def _needed(start: int, stop: int, others: Sequence[_Placed], length: int) -> Counts:
    """Return what must be over until all others have touched the elements [start, stop)."""
    counts: dict[int, int] = {}
    for other in others:
        if other.step.start < stop and start < other.step.stop:
            last = (min(stop, other.step.stop) - 1 - other.step.start) // length
            number = other.channel.number
            counts[number] = max(counts.get(number, 0), other.first + last + 1)
    return list(counts.items())
