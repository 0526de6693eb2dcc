"""Where to cut a model: stages of equal time within a limit of memory, by dynamic programming."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from hpdl_mpi.base.errors import InputError

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
        What it keeps from forward to backward, beside what the layer before it keeps already.
    entry_bytes : int
        What it keeps besides where a stage begins with it.
    input_bytes : int
        Of its input: all that a stage beginning with it keeps if it is to be recomputed.
    working_bytes : int
        What it takes for a moment only.
    """

    forward: float
    backward: float
    fixed_bytes: int = 0
    saved_bytes: int = 0
    entry_bytes: int = 0
    input_bytes: int = 0
    working_bytes: int = 0


class StageCosts:
    """What stages of certain layers would take.

    Parameters
    ----------
    layers : sequence of LayerCost
    held : sequence of int
        For each stage how many micro-batches its rank keeps at most; so its length is the number of stages.
    recompute : bool
        Stages keep their inputs alone, and run forward twice.
    """

    def __init__(self, layers: Sequence[LayerCost], held: Sequence[int], *, recompute: bool = False) -> None:
        self.num_layers, self.num_stages = len(layers), len(held)
        self._layers, self._held, self._recompute = layers, held, recompute
        names = ("forward", "backward", "fixed_bytes", "saved_bytes")
        sums = ([0, *accumulate(getattr(layer, name) for layer in layers)] for name in names)
        self._forward, self._backward, self._fixed, self._saved = sums

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
        first, held = self._layers[start], self._held[stage]
        saved = self._saved[stop] - self._saved[start] + first.entry_bytes
        kept = held * first.input_bytes + saved if self._recompute else held * saved
        working = max(layer.working_bytes for layer in self._layers[start:stop])
        # At each end one message may be leaving and one be awaited, outputs one way and gradients the other.
        ends = [self._layers[cut].input_bytes for cut in (start, stop) if 0 < cut < self.num_layers]
        return self.fixed_bytes(start, stop) + kept + working + 2 * sum(ends)


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
            where="parallel.pp",
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
