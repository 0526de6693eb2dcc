"""How a model is cut and a batch divided: given, or measured and chosen within a limit of memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from hpdl_mpi.base.errors import InputError, require
from hpdl_mpi.nn import Layer, Sequential
from hpdl_mpi.parallel.pipeline import (
    Schedule,
    StageCosts,
    check,
    complete,
    cut,
    make_schedule,
    partition,
    pieces,
    read_schedule,
    refuse_too_many_stages,
    stage_loads,
)
from hpdl_mpi.plan.costs import Task, measure_layers

_PER_RANK = 4
"""Micro-batches for each rank of a pipeline, where there is a choice: Huang et al. (2019) find bubbles small then."""


def plan_pipeline(
    task: Task,
    *,
    num_ranks: int,
    max_share: int,
    schedule: str = "1f1b",
    num_chunks: int | None = None,
    num_microbatches: int | None = None,
    cuts: Sequence[int] | None = None,
    limit_bytes: int | None = None,
) -> tuple[Schedule, tuple[int, ...]]:
    """Return the schedule of a pipeline, proved, and the cuts of the model. Local; measures what it must.

    Stages take equal time. Without `num_microbatches` there are four for each rank of a pipeline, or one on a rank
    alone, and more where the memory is too small for these.

    Parameters
    ----------
    task : Task
    num_ranks : int
        Of the pipeline.
    max_share : int
        Samples of a batch that the pipeline gets at most.
    schedule : str
        See `make_schedule`.
    num_chunks, num_microbatches : int, optional
    cuts : sequence of int, optional
        See `cut`.
    limit_bytes : int, optional
        Of a rank: parameters, gradients, optimizer state, and what micro-batches keep.

    Raises
    ------
    InputError
        There are fewer layers than stages, the cuts do not fit the model or the schedule, or nothing fits the memory.
    """
    if num_microbatches is None and schedule.lower().endswith(".csv"):
        num_microbatches = read_schedule(Path(schedule)).num_microbatches
    tried = [num_microbatches] if num_microbatches else _counts(num_ranks, max_share, limit_bytes is not None)
    for number in tried:
        plan = make_schedule(schedule, num_ranks, number, num_chunks)
        check(complete(plan), complete=True)
        chunks = plan.num_stages // num_ranks
        if cuts is not None:
            expected = f"one fewer than the {plan.num_stages} stages"
            require("parallel.cuts", list(cuts), len(cuts) == plan.num_stages - 1, expected)
            cut(task.model, task.input_shape, cuts, task.recompute)
        if limit_bytes is None and (plan.num_stages == 1 or cuts is not None):
            return plan, tuple(cuts or ())
        costs = stage_costs(task, plan, -(-max_share // number))
        limit = math.inf if limit_bytes is None else limit_bytes / chunks
        try:
            return plan, tuple(partition(costs, limit) if cuts is None else _fitting(costs, cuts, limit))
        except InputError:
            if number == tried[-1]:
                raise
    raise AssertionError("one number at least is tried")


def stage_costs(task: Task, schedule: Schedule, microbatch_size: int) -> StageCosts:
    """Return what stages of a model cost: measured, layer by layer. Local.

    Raises
    ------
    InputError
        There are fewer layers than stages.
    """
    layers = _build(task, schedule.num_stages)
    refuse_too_many_stages(schedule.num_stages, len(layers), schedule.num_stages // schedule.num_ranks)
    measured = measure_layers(task, layers, microbatch_size)
    return StageCosts(measured, stage_loads(complete(schedule)), recompute=task.recompute == "stage")


def _counts(num_ranks: int, max_share: int, may_grow: bool) -> list[int]:
    """Return the numbers of micro-batches to try."""
    counts = [min(max_share, _PER_RANK * num_ranks if num_ranks > 1 else 1)]
    while may_grow and counts[-1] < max_share:
        counts.append(min(max_share, 2 * counts[-1]))
    return counts


def _build(task: Task, num_stages: int) -> dict[str, Layer]:
    """Build the model and return what it can be cut between; one that is not cut may be anything."""
    if num_stages == 1 and not isinstance(task.model, Sequential):
        task.model.build(task.input_shape)
        return {"": task.model}
    layers = pieces(task.model, task.recompute)
    Sequential(**layers).build(task.input_shape)
    return layers


def _fitting(costs: StageCosts, cuts: Sequence[int], limit: float) -> Sequence[int]:
    """Return the cuts if every stage fits; else raise."""
    for stage, (start, stop) in enumerate(pairwise([0, *cuts, costs.num_layers])):
        needed = costs.nbytes(stage, start, stop)
        if needed > limit:
            raise InputError(
                "a stage does not fit the memory",
                where="parallel.cuts",
                found=f"about {needed:,.0f} bytes of stage {stage}",
                expected=f"at most {limit:,.0f}",
                remedy="cut elsewhere, use more ranks or more micro-batches, or recompute activations",
            )
    return cuts
