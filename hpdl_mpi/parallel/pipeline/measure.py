"""What a pipeline's ranks recorded, held against the simulation: costs, bubbles, and what a step's time is made of."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from hpdl_mpi.base.trace import Span
from hpdl_mpi.parallel.pipeline.action import Action, Op, Schedule
from hpdl_mpi.parallel.pipeline.simulate import Simulation, StageCost, Timing, simulate

Steps = Sequence[Sequence[Sequence[Span]]]
"""The spans of a pipeline's ranks on one clock: by rank and by step. The whole step comes last of its spans."""

_ACTION = re.compile(r"(\d+)([A-Z_]+?)(\d+)")


def split_steps(spans: Sequence[Span]) -> list[list[Span]]:
    """Return a rank's spans step by step; what belongs to no whole step is left out."""
    steps: list[list[Span]] = []
    open_step: list[Span] = []
    for span in spans:
        open_step.append(span)
        if span.kind == "step":
            steps.append([one for one in open_step if one.start >= span.start])
            open_step = []
    return steps


def action_of(span: Span) -> Action | None:
    """Return the action that a span records, if it is one."""
    match = _ACTION.fullmatch(span.name)
    return Action(Op(match[2]), int(match[1]), int(match[3])) if match else None


def measured_costs(schedule: Schedule, steps: Steps) -> list[StageCost]:
    """Return what each stage's actions took, medians over all steps.

    A message takes as long as a rank that waits already has to wait from the start of the send on.
    """
    seconds: dict[tuple[Op, int], list[float]] = defaultdict(list)
    messages: dict[int, list[float]] = defaultdict(list)
    for spans in zip(*steps, strict=True):  # of all ranks, in one step
        sent: dict[Action, float] = {}
        waits: list[tuple[Action, Span]] = []
        for span in (span for mine in spans for span in mine):
            action = action_of(span)
            if action is None:
                continue
            if span.kind == "compute":
                seconds[action.op, action.stage].append(span.seconds)
            elif span.kind == "send":
                sent[action] = span.start
            elif span.kind == "wait":
                waits.append((action, span))
        for action, span in waits:
            towards = 1 if action.op is Op.RECV_F else -1
            send = Action(Op.SEND_F if towards > 0 else Op.SEND_B, action.stage - towards, action.microbatch)
            if send in sent and span.start < sent[send]:
                messages[min(action.stage, send.stage)].append(span.stop - sent[send])

    def cost(op: Op, stage: int) -> float | None:
        return median(seconds[op, stage]) if seconds[op, stage] else None

    return [
        StageCost(
            forward=cost(Op.F, stage) or 0.0,
            dgrad=cost(Op.I, stage) or 0.0,
            wgrad=cost(Op.W, stage) or 0.0,
            backward=cost(Op.B, stage),
            message=median(messages[stage]) if messages[stage] else 0.0,
        )
        for stage in range(schedule.num_stages)
    ]


def recorded(spans: Sequence[Sequence[Span]]) -> Simulation:
    """Return one step of all ranks in the form of a simulated one; the first computation begins at 0."""
    computed = [[(action_of(span), span) for span in mine if span.kind == "compute"] for mine in spans]
    first = min(span.start for mine in computed for _, span in mine)
    timings = [
        [Timing(action, span.start - first, span.stop - first) for action, span in mine if action] for mine in computed
    ]
    return Simulation(timings, [0.0] * len(timings))


@dataclass(frozen=True)
class StepTimes:
    """What the time of a pipeline's steps is made of, in seconds: means over ranks and medians over steps.

    Attributes
    ----------
    step, predicted : float
        A whole step, as measured and as simulated with measured costs.
    compute, wait, update, overhead : float
        What a measured step consists of; overhead is what no span explains.
    predicted_compute, predicted_wait : float
        What a simulated one consists of, beside the update.
    """

    step: float
    predicted: float
    compute: float
    wait: float
    update: float
    overhead: float
    predicted_compute: float
    predicted_wait: float

    @property
    def bubble_measured(self) -> float:
        """The share of a step, its update left out, in which ranks wait."""
        return self.wait / (self.step - self.update)

    @property
    def bubble_predicted(self) -> float:
        """The same of the simulated step."""
        return self.predicted_wait / (self.predicted_wait + self.predicted_compute)


def compare(schedule: Schedule, steps: Steps) -> tuple[StepTimes, Simulation]:
    """Return what recorded steps are made of, beside a simulation with the costs that were measured in them.

    All ranks wait for one another at the end of a step, for its totals; then they update.

    Parameters
    ----------
    schedule : Schedule
        Complete.
    steps : Steps
        One or more.
    """
    steps = [[_computing_alone(spans) for spans in mine] for mine in steps]
    simulation = simulate(schedule, measured_costs(schedule, steps))
    work = fmean(sum(timing.stop - timing.start for timing in timings) for timings in simulation.timings)
    parts = {kind: median(_mean(spans, kind) for spans in zip(*steps, strict=True)) for kind in _KINDS}
    update = median(max(_sum(mine, "update") for mine in spans) for spans in zip(*steps, strict=True))
    return (
        StepTimes(
            step=parts["step"],
            predicted=simulation.makespan + update,
            compute=parts["compute"],
            wait=parts["wait"],
            update=parts["update"],
            overhead=median(_unexplained(spans) for spans in zip(*steps, strict=True)),
            predicted_compute=work,
            predicted_wait=simulation.makespan - work,
        ),
        simulation,
    )


_KINDS = ("step", "compute", "wait", "update")


def _computing_alone(spans: Sequence[Span]) -> list[Span]:
    """Return the spans of a step, computations shorter by the waits for other ranks inside them."""
    waits = [span for span in spans if span.kind == "wait"]

    def alone(span: Span) -> Span:
        inside = (wait.seconds for wait in waits if span.start <= wait.start and wait.stop <= span.stop)
        return span._replace(stop=span.stop - sum(inside))

    return [alone(span) if span.kind == "compute" else span for span in spans]


def _sum(spans: Sequence[Span], kind: str) -> float:
    return sum(span.seconds for span in spans if span.kind == kind)


def _unexplained(spans: Sequence[Sequence[Span]]) -> float:
    return _mean(spans, "step") - sum(_mean(spans, kind) for kind in ("compute", "wait", "update"))


def _mean(spans: Sequence[Sequence[Span]], kind: str) -> float:
    return fmean(_sum(mine, kind) for mine in spans)
