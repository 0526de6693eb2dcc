"""Proofs about a schedule: everything is computed once, in a legal order, and no rank waits for ever.

The programs are run on symbols, one action after the other. A message passes only when its send and its receive are
both what their ranks do next (rendezvous), which is the least that MPI promises: a schedule that ends here ends with
any buffering, and with receives that are posted earlier.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import zip_longest

from hpdl_mpi.comm.check import ScheduleError
from hpdl_mpi.parallel.pipeline.action import COMPUTE, Action, Op, Schedule
from hpdl_mpi.parallel.pipeline.simulate import Result, needed, result_of

_PARTNER = {Op.SEND_F: (Op.RECV_F, 1), Op.SEND_B: (Op.RECV_B, -1)}


def check(schedule: Schedule, *, complete: bool) -> None:
    """Prove that a schedule does what it should.

    Each stage computes each micro-batch once, on its rank, in the order of their numbers: forward, then dgrad, then
    wgrad, or forward alone in all. If the schedule is complete, what crosses ranks is sent and received once, after it
    was computed and before it is used, and each stage's gradient is reduced once, when it is whole.

    Parameters
    ----------
    schedule : Schedule
    complete : bool
        Whether it has messages and reductions; without, results travel by themselves.

    Raises
    ------
    ScheduleError
        It does not; the message names rank and action.
    """
    _check_numbers(schedule)
    trains = any(action.op in COMPUTE and action.op is not Op.F for action in schedule.actions())
    _check_computations(schedule, "FIW" if trains else "F")
    run = _SymbolicRun(schedule, complete)
    run.to_the_end()
    if complete:
        run.check_end(trains)


def _check_numbers(schedule: Schedule) -> None:
    for rank, program in enumerate(schedule.programs):
        for action in program:
            numbers = range(schedule.num_microbatches) if action.op is not Op.REDUCE else (-1,)
            if action.stage not in range(schedule.num_stages) or action.microbatch not in numbers:
                raise ScheduleError(f"rank {rank}: {action} names a stage or micro-batch that is not there")
            if schedule.stage_ranks[action.stage] != rank:
                owner = schedule.stage_ranks[action.stage]
                raise ScheduleError(f"rank {rank}: {action} belongs to rank {owner}, which has stage {action.stage}")


def _check_computations(schedule: Schedule, expected: str) -> None:
    """Check what each stage computes, and in which order of micro-batches."""
    found: dict[tuple[int, str], list[int]] = defaultdict(list)
    for action in schedule.actions():
        if action.op in COMPUTE:
            for half in "IW" if action.op is Op.B else action.op:
                found[action.stage, half].append(action.microbatch)
    for stage in range(schedule.num_stages):
        for half in expected:
            for wanted, met in zip_longest(range(schedule.num_microbatches), found[stage, half]):
                if met != wanted:
                    raise ScheduleError(
                        f"stage {stage} computes {half} of {_microbatch(met)} where {_microbatch(wanted)} is due:"
                        " each micro-batch once and in order"
                    )


def _microbatch(number: int | None) -> str:
    return "nothing" if number is None else f"micro-batch {number}"


class _SymbolicRun:
    """Where each rank is in its program, and what it has by then."""

    def __init__(self, schedule: Schedule, with_messages: bool) -> None:
        self._schedule = schedule
        self._places = [0] * schedule.num_ranks
        self._has: list[set[Result]] = [set() for _ in schedule.programs]
        self._received: list[set[Result]] = [set() for _ in schedule.programs]
        self._reduced: list[int] = []
        self._with_messages = with_messages

    def to_the_end(self) -> None:
        """Run all programs to their ends."""
        programs = self._schedule.programs
        moving = True
        while moving:
            moving = False
            for rank in range(len(programs)):
                while self._step(rank):
                    moving = True
        stuck = [
            f"rank {r} at {p[k]}" for r, (p, k) in enumerate(zip(programs, self._places, strict=True)) if k < len(p)
        ]
        if stuck:
            raise ScheduleError(f"ranks wait for one another for ever: {', '.join(stuck)}")

    def _next(self, rank: int) -> Action | None:
        program, place = self._schedule.programs[rank], self._places[rank]
        return program[place] if place < len(program) else None

    def _step(self, rank: int) -> bool:
        """Run a rank's next action, if it can be now; a message moves both of its ranks."""
        action = self._next(rank)
        if action is None or action.op in (Op.RECV_F, Op.RECV_B):
            return False
        if action.op in _PARTNER:
            return self._pass_message(rank, action)
        if action.op is Op.REDUCE:
            self._reduce(rank, action)
        elif not self._compute(rank, action):
            return False
        self._places[rank] += 1
        return True

    def _compute(self, rank: int, action: Action) -> bool:
        ranks = self._schedule.stage_ranks
        for result, link in needed(action, ranks):
            # without messages, results travel by themselves
            holder = rank if link is None or self._with_messages else ranks[result[1]]
            if result not in self._has[holder]:
                if holder == rank:
                    raise ScheduleError(f"rank {rank}: {action} comes before {_name(result)} is there")
                return False
            self._received[rank].discard(result)
        self._has[rank].add(result_of(action))
        if action.op is Op.B:
            self._has[rank].add((Op.W, action.stage, action.microbatch))
        return True

    def _pass_message(self, rank: int, action: Action) -> bool:
        receive, towards = _PARTNER[action.op]
        stage = action.stage + towards
        ranks = self._schedule.stage_ranks
        if stage not in range(len(ranks)) or ranks[stage] == rank:
            raise ScheduleError(f"rank {rank}: {action} has no other rank to go to")
        result = Op.F if action.op is Op.SEND_F else Op.I, action.stage, action.microbatch
        if result not in self._has[rank]:
            raise ScheduleError(f"rank {rank}: {action} comes before {_name(result)} is there")
        peer = ranks[stage]
        if self._next(peer) != Action(receive, stage, action.microbatch):
            return False
        if result in self._has[peer]:
            raise ScheduleError(f"rank {peer}: {self._next(peer)} receives what is there already")
        self._has[peer].add(result)
        self._received[peer].add(result)
        self._places[rank] += 1
        self._places[peer] += 1
        return True

    def _reduce(self, rank: int, action: Action) -> None:
        if any((Op.W, action.stage, i) not in self._has[rank] for i in range(self._schedule.num_microbatches)):
            raise ScheduleError(f"rank {rank}: {action} comes before the stage's gradient is whole")
        self._reduced.append(action.stage)

    def check_end(self, trains: bool) -> None:
        """Check that all gradients were reduced, if there are any, and that nothing came that nobody used."""
        stages = list(range(self._schedule.num_stages)) if trains else []
        if sorted(self._reduced) != stages:
            raise ScheduleError(
                f"gradients of stages {sorted(self._reduced)} are reduced, not of each of {stages} once"
            )
        for rank, unused in enumerate(self._received):
            for result in unused:
                raise ScheduleError(f"rank {rank}: {_name(result)} is received and not used")


def _name(result: Result) -> str:
    op, stage, microbatch = result
    what = {Op.F: "the output", Op.I: "the input's gradient", Op.W: "the weights' gradient"}[op]
    return f"{what} of stage {stage} for micro-batch {microbatch}"
