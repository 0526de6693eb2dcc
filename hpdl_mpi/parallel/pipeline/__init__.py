"""Pipelines: schedules written as data, proved and simulated before they run; stages; and the loop that runs them."""

from hpdl_mpi.parallel.pipeline.action import Action, Op, Schedule
from hpdl_mpi.parallel.pipeline.check import check
from hpdl_mpi.parallel.pipeline.execute import Companion, Executor
from hpdl_mpi.parallel.pipeline.feed import Feed
from hpdl_mpi.parallel.pipeline.generators import forward_only
from hpdl_mpi.parallel.pipeline.measure import StepTimes, compare, measured_costs, recorded, split_steps
from hpdl_mpi.parallel.pipeline.named import FAMILIES, make_schedule
from hpdl_mpi.parallel.pipeline.partition import (
    LayerCost,
    StageCosts,
    StageLoad,
    partition,
    refuse_too_many_stages,
    stage_loads,
)
from hpdl_mpi.parallel.pipeline.passes import complete
from hpdl_mpi.parallel.pipeline.simulate import Simulation, StageCost, simulate
from hpdl_mpi.parallel.pipeline.stages import Pipeline, Recomputed, Stage, cut, pieces
from hpdl_mpi.parallel.pipeline.table import format_schedule, read_schedule

__all__ = [
    "FAMILIES",
    "Action",
    "Companion",
    "Executor",
    "Feed",
    "LayerCost",
    "Op",
    "Pipeline",
    "Recomputed",
    "Schedule",
    "Simulation",
    "Stage",
    "StageCost",
    "StageCosts",
    "StageLoad",
    "StepTimes",
    "check",
    "compare",
    "complete",
    "cut",
    "format_schedule",
    "forward_only",
    "make_schedule",
    "measured_costs",
    "partition",
    "pieces",
    "read_schedule",
    "recorded",
    "refuse_too_many_stages",
    "simulate",
    "split_steps",
    "stage_loads",
]
