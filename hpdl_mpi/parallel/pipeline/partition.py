"""Where to cut a model: stages of equal time within a limit of memory, by dynamic programming."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.parallel.pipeline.action import Op, Schedule
from hpdl_mpi.parallel.pipeline.slots import assign_slots

_NOISE = 0.02
"""Times that differ by less count as equal: a layer that takes next to nothing shall not be a stage of its own."""


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What one of the layers that a model can be cut between costs, for one micro-batch.

    Attributes
    ----------
    forward, backward : float
        Seconds.
    fixed_bytes : int
        Parameters, gradients and optimizer state, whatever the number of micro-batches.
    saved_bytes : int
        What it keeps from forward to dgrad, beside what the layer before it keeps already.
    deferred_bytes : int
        What it keeps from dgrad to wgrad, beside what the layer before it keeps already.
    input_bytes : int
        Of its input, which is a message where a stage begins with it.
    output_bytes : int
        Of its output, and so of the loss's gradient, which the last stage keeps until backward.
    working_bytes : int
        What it takes for a moment only.
    """

    forward: float
    backward: float
    fixed_bytes: int = 0
    saved_bytes: int = 0
    deferred_bytes: int = 0
    input_bytes: int = 0
    output_bytes: int = 0
    working_bytes: int = 0


@dataclass(frozen=True)
class StageLoad:
    """What a stage keeps at once, in micro-batches.

    Attributes
    ----------
    peaks : tuple of (int, int)
        How many wait for dgrad, and how many for wgrad; the moments of which no other has more of both.
    inputs, gradients : int
        How many messages it has received or awaits, at most.
    """

    peaks: tuple[tuple[int, int], ...]
    inputs: int = 0
    gradients: int = 0


def stage_loads(schedule: Schedule) -> list[StageLoad]:
    """Return what each stage of a complete schedule keeps at once."""
    moments: list[set[tuple[int, int]]] = [{(0, 0)} for _ in schedule.stage_ranks]
    now = [[0, 0] for _ in schedule.stage_ranks]
    for action in schedule.actions():
        waiting = now[action.stage]
        waiting[0] += (action.op is Op.F) - (action.op in (Op.I, Op.B))
        waiting[1] += (action.op is Op.I) - (action.op is Op.W)
        moments[action.stage].add((waiting[0], waiting[1]))
    slots: dict[tuple[Op, int], int] = {}
    for program in schedule.programs:
        for (op, (stage, _)), slot in assign_slots(program).items():
            slots[op, stage] = max(slot + 1, slots.get((op, stage), 0))
    return [
        StageLoad(
            tuple(one for one in found if not any(_more(other, one) for other in found)),
            slots.get((Op.RECV_F, stage), 0),
            slots.get((Op.RECV_B, stage), 0),
        )
        for stage, found in enumerate(moments)
    ]


def _more(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one != other and one[0] >= other[0] and one[1] >= other[1]


class StageCosts:
    """What stages of certain layers would take.

    Parameters
    ----------
    layers : sequence of LayerCost
    loads : sequence of StageLoad
        What each stage keeps at once; so its length is the number of stages.
    recompute : bool
        Stages keep their inputs alone, and run forward twice.
    """

    def __init__(self, layers: Sequence[LayerCost], loads: Sequence[StageLoad], *, recompute: bool = False) -> None:
        self.num_layers, self.num_stages = len(layers), len(loads)
        self._layers, self._loads, self._recompute = layers, loads, recompute
        names = ("forward", "backward", "fixed_bytes", "saved_bytes", "deferred_bytes")
        sums = ([0, *accumulate(getattr(layer, name) for layer in layers)] for name in names)
        self._forward, self._backward, self._fixed, self._saved, self._deferred = sums

    def forward(self, start: int, stop: int) -> float:
        """Return the seconds of the layers from `start` to `stop`, forward of one micro-batch."""
        return self._forward[stop] - self._forward[start]

    def backward(self, start: int, stop: int) -> float:
        """Return the seconds of their backward, with the forward that recomputes."""
        again = self.forward(start, stop) if self._recompute else 0.0
        return self._backward[stop] - self._backward[start] + again

    def seconds(self, start: int, stop: int) -> float:
        """Return the seconds of both."""
        return self.forward(start, stop) + self.backward(start, stop)

    def fixed_bytes(self, start: int, stop: int) -> int:
        """Return the memory of their parameters, gradients and optimizer state."""
        return self._fixed[stop] - self._fixed[start]

    def nbytes(self, stage: int, start: int, stop: int) -> float:
        """Return the memory of the layers from `start` to `stop` as a stage."""
        load = self._loads[stage]
        saved, deferred = (sums[stop] - sums[start] for sums in (self._saved, self._deferred))
        kept = max(
            (min(waiting, 1) if self._recompute else waiting) * saved
            + late * deferred
            + waiting * (self._layers[-1].output_bytes if stop == self.num_layers else 0)
            for waiting, late in load.peaks
        )
        working = max(layer.working_bytes for layer in self._layers[start:stop])
        # What is received lies where it came in as long as it is needed; one message more may be leaving.
        messages = (load.inputs + 1) * self._layers[start].input_bytes if start else 0
        messages += (load.gradients + 1) * self._layers[stop].input_bytes if stop < self.num_layers else 0
        return self.fixed_bytes(start, stop) + kept + working + messages


def partition(costs: StageCosts, limit_bytes: float = math.inf) -> list[int]:
    """Return the cuts that make the slowest stage as fast as can be.

    Of those that do so within 2 %, it is those whose times differ least.

    Parameters
    ----------
    costs : StageCosts
    limit_bytes : float
        Of a stage. A rank of several stages has as many times that.

    Returns
    -------
    list of int
        The number of the first layer of each stage but the first.

    Raises
    ------
    InputError
        There are fewer layers than stages, or no cuts keep all stages within the limit.
    """
    num_layers, num_stages = costs.num_layers, costs.num_stages
    refuse_too_many_stages(num_stages, num_layers)

    def time_of(stage: int, start: int, stop: int) -> float:
        """Return the time of a stage of these layers, infinite if they do not fit."""
        fits = math.isinf(limit_bytes) or costs.nbytes(stage, start, stop) <= limit_bytes
        return costs.seconds(start, stop) if fits else math.inf

    bounds = _best_bounds(num_layers, num_stages, time_of, max, math.inf)
    if bounds is None:
        raise InputError(
            "no cuts keep all stages within the memory",
            where="parallel.memory_limit",
            found=f"{num_stages} stages",
            expected=f"at most {limit_bytes:,.0f} bytes for each",
            remedy="use more ranks, smaller micro-batches or fewer of them on their way, or recompute activations",
        )
    slowest = max(time_of(stage, *pair) for stage, pair in enumerate(pairwise(bounds)))
    longest = slowest * (1 + _NOISE)
    even = _best_bounds(num_layers, num_stages, time_of, lambda total, time: total + time * time, longest)
    assert even is not None, "what was found once is found again"
    return even[1:-1]


def refuse_too_many_stages(num_stages: int, num_layers: int, chunks: int = 1) -> None:
    """Raise an InputError that names the largest pipeline unless each stage can have a layer."""
    if num_stages > num_layers:
        raise InputError(
            "more stages than layers",
            where="parallel.pp",
            found=f"{num_stages} stages, {num_layers} layers to cut between",
            expected=f"at most {num_layers // chunks}" + (f", with {chunks} stages each" if chunks > 1 else ""),
        )


def _best_bounds(
    num_layers: int,
    num_stages: int,
    time_of: Callable[[int, int, int], float],
    combine: Callable[[float, float], float],
    longest: float,
) -> list[int] | None:
    """Return where stages start and the last one stops, such that the stages' combined times are least.

    `combine` takes what earlier stages amount to and the time of one more; no stage takes more than `longest`.
    """
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [0])}  # by the layers that the stages so far have
    for stage in range(num_stages):
        after: dict[int, tuple[float, list[int]]] = {}
        for stop in range(stage + 1, num_layers - (num_stages - stage - 1) + 1):
            options = [
                (combine(amount, time), [*bounds, stop])
                for start, (amount, bounds) in best.items()
                if start < stop and math.isfinite(time := time_of(stage, start, stop)) and time <= longest
            ]
            if options:
                after[stop] = min(options)
        best = after
    return best[num_layers][1] if num_layers in best else None
