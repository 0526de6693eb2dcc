"""Proofs about programs: what each array holds in the end, that no rank waits for ever, and that none races.

The programs are run on symbols. Arrays and windows are cut at every start and stop of a step; for each piece one counts
how often each rank's contribution is in it. A message passes only while its send and its receive are both under way
(rendezvous), which is the least that MPI promises: programs that end here end with any buffering.

Shared memory has no order of its own. Each rank has a vector clock (Fidge, 1988; Mattern, 1989), which signals and
messages carry; whoever touches a piece must know of all that others did there. Programs that share memory are run three
times over, since what one run leaves another one meets.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from hpdl_mpi.base.shares import share
from hpdl_mpi.comm.schedule import Op, Program, Round, Step, is_shared, window_size

_RUNS = 3
_ALONE = (Op.COPY, Op.READ, Op.READ_REDUCE)
"""What a rank may do with its own window."""

Expected = list[tuple[int, int, np.ndarray]]
"""For runs of elements, how often each rank's contribution is to be in them."""


class ScheduleError(ValueError):
    """The ranks' programs, of a collective or of a pipeline, do not do what they should."""


def check_allreduce(programs: Sequence[Program], num_elements: int, *, in_window: bool = False) -> None:
    """Prove that every rank ends with every rank's contribution, once, to every element.

    Parameters
    ----------
    programs : sequence of Program
        The programs of all ranks.
    num_elements : int
        The length of the array.
    in_window : bool
        Whether the arrays lie in the windows.

    Raises
    ------
    ScheduleError
        They do not; it names rank, round and step.
    """
    everyone = np.ones(len(programs), np.int64)
    _SymbolicRun(programs, num_elements, lambda rank: [(0, num_elements, everyone)], in_window)


def check_reduce_scatter(programs: Sequence[Program], num_elements: int, *, in_window: bool = False) -> None:
    """Prove that rank r ends with every rank's contribution, once, to chunk r; as `check_allreduce`."""
    num_ranks = len(programs)
    everyone = np.ones(num_ranks, np.int64)
    _SymbolicRun(programs, num_elements, lambda rank: [(*share(num_elements, rank, num_ranks), everyone)], in_window)


def check_all_gather(programs: Sequence[Program], num_elements: int) -> None:
    """Prove that every rank ends with chunk r as rank r had it, for all r; as `check_allreduce`."""
    num_ranks = len(programs)
    chunks = [
        (*share(num_elements, owner, num_ranks), owned) for owner, owned in enumerate(np.eye(num_ranks, dtype=np.int64))
    ]
    _SymbolicRun(programs, num_elements, lambda rank: chunks)


class _Race(Exception):
    """Somebody did something to a piece that whoever touches it cannot know of."""


class _Memory:
    """An array or a window: what its pieces hold, and when each rank last read and wrote them.

    Attributes
    ----------
    held, written, read : ndarray, shape (num_pieces, num_ranks), int64
        How often a rank's contribution is in a piece; the rank's time at its last access.
    """

    def __init__(self, num_pieces: int, num_ranks: int) -> None:
        self.held, self.written, self.read = np.zeros((3, num_pieces, num_ranks), np.int64)

    def load(self, pieces: slice, rank: int, clock: np.ndarray) -> np.ndarray:
        """Return a copy of what some pieces hold, as a rank with this clock reads it."""
        self._require_known(self.written[pieces], clock, "writes")
        self.read[pieces, rank] = clock[rank]
        return self.held[pieces].copy()

    def store(self, pieces: slice, values: np.ndarray, rank: int, clock: np.ndarray) -> None:
        """Let a rank with this clock write some pieces."""
        self._require_known(self.written[pieces], clock, "writes")
        self._require_known(self.read[pieces], clock, "reads")
        self.written[pieces, rank] = clock[rank]
        self.held[pieces] = values

    def _require_known(self, times: np.ndarray, clock: np.ndarray, what: str) -> None:
        unknown = (times > clock).any(axis=0)
        if unknown.any():
            raise _Race(f"rank {np.flatnonzero(unknown)[0]}, which {what} there")


class _SymbolicRun:
    """The state of all ranks, from the start to the end of the programs.

    Raises
    ------
    ScheduleError
        A rank ends with other contributions than `expected`, never ends, or races.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        num_elements: int,
        expected: Callable[[int], Expected],
        in_window: bool = False,
    ) -> None:
        self.programs, self.num_ranks, self.expected = programs, len(programs), expected
        self.in_window = in_window
        for rank, program in enumerate(programs):
            for position, steps in enumerate(program):
                self._check_round(rank, position, steps, num_elements)
        self.num_runs = _RUNS if any(is_shared(steps) for program in programs for steps in program) else 1
        self.edges, self.places = self._cut(num_elements)
        self.arrays = [_Memory(len(self.edges), self.num_ranks) for _ in programs]
        if in_window:
            self.windows = [self.arrays]
        else:
            self.windows = [[_Memory(len(self.places), self.num_ranks) for _ in programs] for _ in range(2)]
        self.clocks = np.eye(self.num_ranks, dtype=np.int64)
        self.signals: dict[tuple[int, int], deque[np.ndarray]] = {}
        self.run, self.round, self.index = ([0] * self.num_ranks for _ in range(3))
        self.open: list[list[tuple[Step, np.ndarray, np.ndarray]] | None] = [None] * self.num_ranks
        self._run()

    def _check_round(self, rank: int, position: int, steps: Round, num_elements: int) -> None:
        for step in steps:
            where = f"rank {rank}, round {position}: {step}"
            if not 0 <= step.start <= step.stop <= num_elements or step.place < 0:
                raise ScheduleError(f"{where} leaves the array of {num_elements} elements")
            if not 0 <= step.peer < self.num_ranks or (step.peer == rank and step.op not in _ALONE):
                raise ScheduleError(f"{where} has no such peer among {self.num_ranks} ranks")
            if step.op.is_message == is_shared(steps):
                raise ScheduleError(f"{where} mixes messages and shared memory")
            if self.in_window and not step.op.is_message and step.place != step.start:
                raise ScheduleError(f"{where} is elsewhere than in the array")
        for index, step in enumerate(steps if not is_shared(steps) else ()):
            for other in steps[index + 1 :]:
                self._check_pair(f"rank {rank}, round {position}", step, other)

    def _check_pair(self, where: str, step: Step, other: Step) -> None:
        """Raise unless two messages may be under way at once."""
        if step.peer == other.peer and step.op.writes == other.op.writes:
            raise ScheduleError(f"{where}: {other} goes the way of {step}; one is enough")
        overlap = max(step.start, other.start) < min(step.stop, other.stop)
        if overlap and (step.op.writes or other.op.writes) and not _is_exchange(step, other):
            raise ScheduleError(f"{where}: {step} races with {other}")

    def _cut(self, num_elements: int) -> tuple[list[int], list[int]]:
        """Return where arrays and windows are cut, so that each step moves whole pieces."""
        edges = {edge for rank in range(self.num_ranks) for edge in share(num_elements, rank, self.num_ranks)}
        moves = {
            (step.start, step.stop, None if step.op.is_message else step.place)
            for program in self.programs
            for steps in program
            for step in steps
            if step.op not in (Op.SIGNAL, Op.WAIT)
        }
        edges.update(edge for start, stop, _ in moves for edge in (start, stop))
        size = window_size(self.programs)
        places = {0, size}
        grown = True
        while grown:
            before = len(edges), len(places)
            cuts, marks = sorted(edges), sorted(places)
            for start, stop, place in moves:
                if place is not None:
                    inner = cuts[bisect_left(cuts, start) : bisect_right(cuts, stop)]
                    places.update(place + edge - start for edge in inner)
                    inner = marks[bisect_left(marks, place) : bisect_right(marks, place + stop - start)]
                    edges.update(start + mark - place for mark in inner)
            grown = (len(edges), len(places)) != before
        return sorted(edges), sorted(places)

    def _pieces(self, step: Step) -> slice:
        return _between(self.edges, step.start, step.stop)

    def _run(self) -> None:
        """Let every rank go on until nobody can."""
        for rank in range(self.num_ranks):
            self._begin(rank)
        stirred = deque(range(self.num_ranks))
        while stirred:
            stirred.extend(self._advance(stirred.popleft()))
        stuck = [rank for rank in range(self.num_ranks) if self.run[rank] < self.num_runs]
        if stuck:
            raise ScheduleError(f"nobody answers: {'; '.join(map(self._position, stuck))}")
        for (sender, receiver), left in self.signals.items():
            if left:
                raise ScheduleError(f"rank {sender} signals rank {receiver} more often than that waits")

    def _position(self, rank: int) -> str:
        opened = self.open[rank]
        steps = self.programs[rank][self.round[rank]]
        return f"rank {rank}, round {self.round[rank]}: {opened[0][0] if opened else steps[self.index[rank]]}"

    def _begin(self, rank: int) -> None:
        """Let a rank fill its array for the next run."""
        own = np.zeros(self.num_ranks, np.int64)
        own[rank] = 1
        self._guard(rank, "its next array", lambda clock: self.arrays[rank].store(_ALL, own, rank, clock))

    def _end(self, rank: int) -> None:
        """Look at what a rank ends a run with."""
        held = self._guard(rank, "its result", lambda clock: self.arrays[rank].load(_ALL, rank, clock))
        for start, stop, contributions in self.expected(rank):
            self._expect(rank, held, start, stop, contributions)

    def _guard(self, rank: int, what: str, access: Callable[[np.ndarray], np.ndarray | None]) -> np.ndarray:
        try:
            result = access(self.clocks[rank])
        except _Race as race:
            raise ScheduleError(f"rank {rank}, {what} races with {race}") from None
        return np.zeros(0) if result is None else result

    def _advance(self, rank: int) -> set[int]:
        """Let a rank go as far as it can; return the ranks that may go on because of that."""
        stirred: set[int] = set()
        while self.run[rank] < self.num_runs:
            if self.round[rank] == len(self.programs[rank]):
                self._end(rank)
                self.run[rank] += 1
                self.round[rank] = 0
                if self.run[rank] < self.num_runs:
                    self._begin(rank)
                continue
            steps = self.programs[rank][self.round[rank]]
            over = self._share(rank, steps, stirred) if is_shared(steps) else self._exchange(rank, steps, stirred)
            if not over:
                break
            self.round[rank] += 1
        return stirred

    def _share(self, rank: int, steps: Round, stirred: set[int]) -> bool:
        """Go on in a round on shared memory; return whether it is over."""
        clock = self.clocks[rank]
        while self.index[rank] < len(steps):
            step = steps[self.index[rank]]
            if step.op is Op.SIGNAL:
                self.signals.setdefault((rank, step.peer), deque()).append(self._stamp(rank))
                stirred.add(step.peer)
            elif step.op is Op.WAIT:
                arrived = self.signals.get((step.peer, rank))
                if not arrived:
                    return False
                np.maximum(clock, arrived.popleft(), out=clock)
            else:
                self._guard(rank, f"round {self.round[rank]}: {step}", partial(self._touch, rank, step))
            self.index[rank] += 1
        self.index[rank] = 0
        return True

    def _stamp(self, rank: int) -> np.ndarray:
        """Return a rank's clock for others to know, and let its time go on."""
        stamp = self.clocks[rank].copy()
        self.clocks[rank, rank] += 1
        return stamp

    def _touch(self, rank: int, step: Step, clock: np.ndarray) -> None:
        array, pieces = self.arrays[rank], self._pieces(step)
        window = self.windows[self.run[rank] % len(self.windows)][step.peer]
        places = pieces if self.in_window else _between(self.places, step.place, step.place + step.size)
        if step.op is Op.READ:
            array.store(pieces, window.load(places, rank, clock), rank, clock)
        elif step.op is Op.READ_REDUCE:
            total = array.load(pieces, rank, clock) + window.load(places, rank, clock)
            array.store(pieces, total, rank, clock)
        else:  # COPY, whose peer is the rank itself, and WRITE
            window.store(places, array.load(pieces, rank, clock), rank, clock)

    def _exchange(self, rank: int, steps: Round, stirred: set[int]) -> bool:
        """Begin a round of messages and let those pass whose other half is under way; return whether it is over."""
        opened = self.open[rank]
        if opened is None:
            values = [np.zeros(0) if step.op.writes else self._load(rank, step) for step in steps]
            stamp = self._stamp(rank)
            opened = self.open[rank] = [(step, sent, stamp) for step, sent in zip(steps, values, strict=True)]
        for one in list(opened):
            step = one[0]
            theirs = self.open[step.peer] or []
            other = next((o for o in theirs if o[0].peer == rank and o[0].op.writes != step.op.writes), None)
            if other is None:
                continue
            if step.op.writes:
                self._pass(step.peer, other, rank, step)
            else:
                self._pass(rank, one, step.peer, other[0])
            opened.remove(one)
            theirs.remove(other)
            stirred.add(step.peer)
        if opened:
            return False
        self.open[rank] = None
        return True

    def _load(self, rank: int, step: Step) -> np.ndarray:
        """Return what a rank sends, as it is when the round begins."""
        where = f"round {self.round[rank]}: {step}"
        return self._guard(rank, where, lambda clock: self.arrays[rank].load(self._pieces(step), rank, clock))

    def _pass(self, sender: int, sent: tuple[Step, np.ndarray, np.ndarray], receiver: int, receive: Step) -> None:
        send, values, stamp = sent
        if (send.start, send.stop) != (receive.start, receive.stop):
            ends = (
                f"rank {sender}, round {self.round[sender]}: {send}",
                f"rank {receiver}, round {self.round[receiver]}: ",
            )
            raise ScheduleError(f"{ends[0]} meets {ends[1]}{receive}")
        np.maximum(self.clocks[receiver], stamp, out=self.clocks[receiver])
        array, pieces = self.arrays[receiver], self._pieces(receive)

        def arrive(clock: np.ndarray) -> None:
            own = array.load(pieces, receiver, clock) if receive.op is Op.RECV_REDUCE else 0
            array.store(pieces, own + values, receiver, clock)

        self._guard(receiver, f"round {self.round[receiver]}: {receive}", arrive)

    def _expect(self, rank: int, held: np.ndarray, start: int, stop: int, contributions: np.ndarray) -> None:
        """Raise unless a rank's elements hold these contributions; name the step that last wrote a wrong one."""
        pieces = _between(self.edges, start, stop)
        for index in range(pieces.start, pieces.stop):
            found = held[index]
            if (found == contributions).all():
                continue
            culprit = next(int(r) for r in np.flatnonzero(found != contributions))
            raise ScheduleError(
                f"rank {rank} ends with rank {culprit}'s contribution to [{self.edges[index]}, {self.edges[index + 1]})"
                f" {found[culprit]} times, expected {contributions[culprit]};"
                f" {self._last_writer(rank, self.edges[index])}"
            )

    def _last_writer(self, rank: int, element: int) -> str:
        for position, steps in reversed(list(enumerate(self.programs[rank]))):
            for step in steps:
                if step.op.writes and step.start <= element < step.stop:
                    return f"last written in round {position}: {step}"
        return "no step writes there"


_ALL = slice(None)


def _between(edges: Sequence[int], start: int, stop: int) -> slice:
    return slice(bisect_left(edges, start), bisect_left(edges, stop))


def _is_exchange(step: Step, other: Step) -> bool:
    """Return whether two ranks send each other the same elements and add what they get."""
    ops = {step.op, other.op}
    same = (step.start, step.stop, step.peer) == (other.start, other.stop, other.peer)
    return same and ops == {Op.SEND, Op.RECV_REDUCE}
