"""Proofs about programs: what each array holds in the end, and that no rank waits for ever.

The programs are run on symbols. The array is cut at every start and stop of a step; for each piece of each rank's
array one counts how often each rank's contribution is in it. A message passes only while its send and its receive
are both under way (rendezvous), which is the least that MPI promises: programs that end here end with any buffering.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from hpdl_mpi.base.shares import share
from hpdl_mpi.comm.schedule import Op, Program, Round, Step


class ScheduleError(ValueError):
    """The ranks' programs, of a collective or of a pipeline, do not do what they should."""


def check_allreduce(programs: Sequence[Program], num_elements: int) -> None:
    """Prove that every rank ends with every rank's contribution, once, to every element.

    Parameters
    ----------
    programs : sequence of Program
        The programs of all ranks.
    num_elements : int
        The length of the array.

    Raises
    ------
    ScheduleError
        They do not; it names rank, round and step.
    """
    run = _SymbolicRun(programs, num_elements)
    everyone = np.ones(run.num_ranks, np.int64)
    for rank in range(run.num_ranks):
        run.expect(rank, 0, num_elements, everyone)


def check_reduce_scatter(programs: Sequence[Program], num_elements: int) -> None:
    """Prove that rank r ends with every rank's contribution, once, to chunk r; as `check_allreduce`."""
    run = _SymbolicRun(programs, num_elements)
    everyone = np.ones(run.num_ranks, np.int64)
    for rank in range(run.num_ranks):
        run.expect(rank, *share(num_elements, rank, run.num_ranks), everyone)


def check_all_gather(programs: Sequence[Program], num_elements: int) -> None:
    """Prove that every rank ends with chunk r as rank r had it, for all r; as `check_allreduce`."""
    run = _SymbolicRun(programs, num_elements)
    for rank in range(run.num_ranks):
        for owner, owned in enumerate(np.eye(run.num_ranks, dtype=np.int64)):
            run.expect(rank, *share(num_elements, owner, run.num_ranks), owned)


class _SymbolicRun:
    """The state of all ranks, from the start to the end of the programs.

    Attributes
    ----------
    held : ndarray, shape (num_ranks, num_pieces, num_ranks), int64
        How often the last index's contribution is in a piece of the first index's array.
    """

    def __init__(self, programs: Sequence[Program], num_elements: int) -> None:
        self.programs = programs
        self.num_ranks = len(programs)
        for rank, program in enumerate(programs):
            for position, steps in enumerate(program):
                self._check_round(rank, position, steps, num_elements)
        cuts = {edge for rank in range(self.num_ranks) for edge in share(num_elements, rank, self.num_ranks)}
        for program in programs:
            cuts |= {edge for steps in program for step in steps for edge in (step.start, step.stop)}
        self.piece = {edge: index for index, edge in enumerate(sorted(cuts))}
        own = np.eye(self.num_ranks, dtype=np.int64)
        self.held = np.repeat(own[:, None], len(cuts), axis=1)
        self._run()

    def _check_round(self, rank: int, position: int, steps: Round, num_elements: int) -> None:
        for step in steps:
            where = f"rank {rank}, round {position}: {step}"
            if not 0 <= step.start <= step.stop <= num_elements:
                raise ScheduleError(f"{where} leaves the array of {num_elements} elements")
            if not 0 <= step.peer < self.num_ranks or step.peer == rank:
                raise ScheduleError(f"{where} has no such peer among {self.num_ranks} ranks")
        for index, step in enumerate(steps):
            for other in steps[index + 1 :]:
                if step.peer == other.peer and step.op.writes == other.op.writes:
                    raise ScheduleError(f"rank {rank}, round {position}: {other} goes the way of {step}; one is enough")
                overlap = max(step.start, other.start) < min(step.stop, other.stop)
                if overlap and (step.op.writes or other.op.writes):
                    raise ScheduleError(f"rank {rank}, round {position}: {step} races with {other}")

    def _run(self) -> None:
        """Let messages pass and rounds end until nothing moves."""
        self.round = [-1] * self.num_ranks
        self.open: list[list[Step]] = [[] for _ in range(self.num_ranks)]
        stirred = deque(range(self.num_ranks))
        while stirred:
            rank = stirred.popleft()
            while not self.open[rank] and self.round[rank] < len(self.programs[rank]):
                self.round[rank] += 1
                if self.round[rank] < len(self.programs[rank]):
                    self.open[rank] = list(self.programs[rank][self.round[rank]])
            for peer in self._meet(rank):
                stirred.extend((rank, peer))
        stuck = [rank for rank in range(self.num_ranks) if self.open[rank]]
        if stuck:
            waits = "; ".join(f"rank {rank}, round {self.round[rank]}: {self.open[rank][0]}" for rank in stuck)
            raise ScheduleError(f"nobody answers: {waits}")

    def _meet(self, rank: int) -> set[int]:
        """Let pass the messages of a rank whose other half is under way; return the peers that took part."""
        met = set()
        for step in list(self.open[rank]):
            theirs = next((s for s in self.open[step.peer] if s.peer == rank and s.op.writes != step.op.writes), None)
            if theirs is None:
                continue
            sender, receiver = (step.peer, rank) if step.op.writes else (rank, step.peer)
            send, receive = (theirs, step) if step.op.writes else (step, theirs)
            self._pass(sender, send, receiver, receive)
            self.open[rank].remove(step)
            self.open[step.peer].remove(theirs)
            met.add(step.peer)
        return met

    def _pass(self, sender: int, send: Step, receiver: int, receive: Step) -> None:
        if (send.start, send.stop) != (receive.start, receive.stop):
            ends = (
                f"rank {sender}, round {self.round[sender]}: {send}",
                f"rank {receiver}, round {self.round[receiver]}: ",
            )
            raise ScheduleError(f"{ends[0]} meets {ends[1]}{receive}")
        pieces = slice(self.piece[send.start], self.piece[send.stop])
        if receive.op is Op.RECV_REDUCE:
            self.held[receiver, pieces] += self.held[sender, pieces]
        else:
            self.held[receiver, pieces] = self.held[sender, pieces]

    def expect(self, rank: int, start: int, stop: int, contributions: np.ndarray) -> None:
        """Raise unless a rank's elements hold these contributions; name the step that last wrote a wrong one."""
        edges = sorted(self.piece)
        for index in range(self.piece[start], self.piece[stop]):
            found = self.held[rank, index]
            if (found == contributions).all():
                continue
            culprit = next(int(r) for r in np.flatnonzero(found != contributions))
            raise ScheduleError(
                f"rank {rank} ends with rank {culprit}'s contribution to [{edges[index]}, {edges[index + 1]}) "
                f"{found[culprit]} times, expected {contributions[culprit]}; {self._last_writer(rank, edges[index])}"
            )

    def _last_writer(self, rank: int, element: int) -> str:
        for position, steps in reversed(list(enumerate(self.programs[rank]))):
            for step in steps:
                if step.op.writes and step.start <= element < step.stop:
                    return f"last written in round {position}: {step}"
        return "no step writes there"
