"""What a schedule costs: every rank works through its program and waits for what it needs. Time and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpdl_mpi.comm.check import ScheduleError
from hpdl_mpi.parallel.pipeline.action import COMPUTE, Action, Op, Schedule


@dataclass(frozen=True, slots=True)
class StageCost:
    """What a stage costs for one micro-batch; the defaults are the unit of published formulas.

    Attributes
    ----------
    forward, dgrad, wgrad : float
        Seconds.
    backward : float, optional
        Seconds of both halves at once; their sum unless given.
    message : float
        Seconds from the end of the stage's forward until its output is on the next rank, and from the end of the next
        stage's dgrad until its gradient is back.
    saved_bytes : float
        What forward keeps until dgrad is done.
    deferred_bytes : float
        What dgrad leaves until wgrad is done.
    """

    forward: float = 1.0
    dgrad: float = 1.0
    wgrad: float = 1.0
    backward: float | None = None
    message: float = 0.0
    saved_bytes: float = 1.0
    deferred_bytes: float = 1.0

    def seconds(self, op: Op) -> float:
        """Return how long an action takes."""
        both = self.dgrad + self.wgrad if self.backward is None else self.backward
        return {Op.F: self.forward, Op.I: self.dgrad, Op.W: self.wgrad, Op.B: both}[op]


@dataclass(frozen=True, slots=True)
class Timing:
    """When an action runs, in seconds from the start of the batch."""

    action: Action
    start: float
    stop: float


@dataclass(frozen=True)
class Simulation:
    """A simulated run.

    Attributes
    ----------
    timings : list of list of Timing
        Each rank's computations, in order.
    peak_bytes : list of float
        The most that each rank's micro-batches keep at once.
    """

    timings: list[list[Timing]]
    peak_bytes: list[float]

    @property
    def makespan(self) -> float:
        """Seconds from the first action of any rank to the end of the last; the update is not in it."""
        return max((timings[-1].stop for timings in self.timings if timings), default=0.0)

    @property
    def period(self) -> float:
        """Seconds from step to step where ranks wait for nothing but messages: the longest time of a rank's own work.

        A rank that is done early begins the next step early.
        """
        return max((timings[-1].stop - timings[0].start for timings in self.timings if timings), default=0.0)

    def bubble_fraction(self, *, synchronized: bool = False) -> float:
        """Return the share of a step's time in which ranks, on average, wait.

        Parameters
        ----------
        synchronized : bool
            All ranks wait for one another between steps, as clipping by the global norm makes them.
        """
        step = self.makespan if synchronized else self.period
        work = [sum(timing.stop - timing.start for timing in timings) for timings in self.timings]
        return 1.0 - sum(work) / len(work) / step if step else 0.0


def simulate(schedule: Schedule, costs: Sequence[StageCost] | None = None) -> Simulation:
    """Run a schedule on paper. Messages take no time of the rank that sends or receives them.

    Parameters
    ----------
    schedule : Schedule
        Its sends, receives and reductions are passed over: results leave when they are there.
    costs : sequence of StageCost, optional
        One for each stage; of unit cost unless given.

    Raises
    ------
    ScheduleError
        The ranks wait for one another for ever; it says for what.
    """
    costs = [StageCost()] * schedule.num_stages if costs is None else costs
    assert len(costs) == schedule.num_stages, "each stage has its cost"
    programs = [[action for action in program if action.op in COMPUTE] for program in schedule.programs]
    timings: list[list[Timing]] = [[] for _ in programs]
    done: dict[Result, float] = {}
    waiting = list(range(len(programs)))
    while waiting:
        before = len(done)
        for rank in waiting:
            for action in programs[rank][len(timings[rank]) :]:
                needs = needed(action, schedule.stage_ranks)
                if not all(result in done for result, _ in needs):
                    break
                ready = [done[result] + (costs[link].message if link is not None else 0.0) for result, link in needs]
                start = max(ready + [timing.stop for timing in timings[rank][-1:]], default=0.0)
                timings[rank].append(Timing(action, start, start + costs[action.stage].seconds(action.op)))
                done[result_of(action)] = timings[rank][-1].stop
        waiting = [rank for rank in waiting if len(timings[rank]) < len(programs[rank])]
        if waiting and len(done) == before:
            stuck = ", ".join(f"rank {rank} at {programs[rank][len(timings[rank])]}" for rank in waiting)
            raise ScheduleError(f"ranks wait for what never comes: {stuck}")
    return Simulation(timings, [_peak_bytes(program, costs) for program in programs])


Result = tuple[Op, int, int]
"""What a computation leaves: F an output, I the gradient of an input, W that of weights; with stage, micro-batch."""


def result_of(action: Action) -> Result:
    """Return what others may wait for after a computation."""
    return Op.I if action.op is Op.B else action.op, action.stage, action.microbatch


def needed(action: Action, stage_ranks: Sequence[int]) -> list[tuple[Result, int | None]]:
    """Return what a computation waits for, each with the stage before the cut that it crosses, if any."""
    stage, i = action.stage, action.microbatch

    def link(first: int) -> int | None:
        return first if stage_ranks[first] != stage_ranks[first + 1] else None

    if action.op is Op.F:
        return [((Op.F, stage - 1, i), link(stage - 1))] if stage else []
    if action.op is Op.W:
        return [((Op.I, stage, i), None)]
    after = [((Op.I, stage + 1, i), link(stage))] if stage + 1 < len(stage_ranks) else []
    return [((Op.F, stage, i), None), *after]


def _peak_bytes(program: Sequence[Action], costs: Sequence[StageCost]) -> float:
    """Return the most that a rank keeps; the order of its actions alone decides."""
    held = peak = 0.0
    for action in program:
        cost = costs[action.stage]
        if action.op is Op.F:
            held += cost.saved_bytes
        elif action.op is Op.I:
            held += cost.deferred_bytes - cost.saved_bytes
        else:
            held -= cost.deferred_bytes if action.op is Op.W else cost.saved_bytes
        peak = max(peak, held)
    return peak
