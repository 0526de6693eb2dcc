"""Where to cut a model: stages of equal time within a limit of memory, by dynamic programming."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from hpdl_mpi.base.errors import InputError


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What one of the layers that a model can be cut between costs.

    Attributes
    ----------
    seconds : float
        Forward and backward of one micro-batch.
    fixed_bytes : int
        Parameters, gradients and optimizer state.
    saved_bytes : int
        What it keeps of each micro-batch on its way.
    """

    seconds: float
    fixed_bytes: int = 0
    saved_bytes: int = 0


def partition(layers: Sequence[LayerCost], held: Sequence[int], limit_bytes: float = math.inf) -> list[int]:
    """Return the cuts that make the slowest stage as fast as can be; of equal ones those whose times differ least.

    Parameters
    ----------
    layers : sequence of LayerCost
    held : sequence of int
        For each stage how many micro-batches its rank keeps at most; so its length is the number of stages.
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
    num_layers, num_stages = len(layers), len(held)
    if num_stages > num_layers:
        raise InputError(
            "more stages than layers",
            where="parallel.pp",
            found=f"{num_stages} stages, {num_layers} layers to cut between",
            expected=f"at most {num_layers} stages",
        )
    seconds, fixed, saved = (
        [0, *accumulate(getattr(layer, name) for layer in layers)] for name in ("seconds", "fixed_bytes", "saved_bytes")
    )

    def time_of(stage: int, start: int, stop: int) -> float:
        """Return the time of a stage of these layers, infinite if they do not fit."""
        needed = fixed[stop] - fixed[start] + held[stage] * (saved[stop] - saved[start])
        return seconds[stop] - seconds[start] if needed <= limit_bytes else math.inf

    bounds = _best_bounds(num_layers, num_stages, time_of, max, math.inf)
    if bounds is None:
        raise InputError(
            "no cuts keep all stages within the memory",
            where="parallel.pp",
            found=f"{num_stages} stages",
            expected=f"at most {limit_bytes:.0f} bytes for each",
            remedy="use more ranks, smaller micro-batches or fewer of them on their way, or recompute activations",
        )
    slowest = max(time_of(stage, *pair) for stage, pair in enumerate(pairwise(bounds)))
    even = _best_bounds(num_layers, num_stages, time_of, lambda total, time: total + time * time, slowest)
    assert even is not None, "what was found once is found again"
    return even[1:-1]


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
