"""Pipelines: schedules written as data, proved and simulated before they run; stages; and the loop that runs them."""

from hpdl_mpi.parallel.pipeline.action import Action, Op, Schedule
from hpdl_mpi.parallel.pipeline.check import check
from hpdl_mpi.parallel.pipeline.execute import Executor, Feed
from hpdl_mpi.parallel.pipeline.generators import forward_only
from hpdl_mpi.parallel.pipeline.named import FAMILIES, make_schedule
from hpdl_mpi.parallel.pipeline.partition import LayerCost, partition
from hpdl_mpi.parallel.pipeline.passes import complete
from hpdl_mpi.parallel.pipeline.simulate import Simulation, StageCost, simulate
from hpdl_mpi.parallel.pipeline.stages import Stage, cut
from hpdl_mpi.parallel.pipeline.table import format_schedule, read_schedule

__all__ = [
    "FAMILIES",
    "Action",
    "Executor",
    "Feed",
    "LayerCost",
    "Op",
    "Schedule",
    "Simulation",
    "Stage",
    "StageCost",
    "check",
    "complete",
    "cut",
    "format_schedule",
    "forward_only",
    "make_schedule",
    "partition",
    "read_schedule",
    "simulate",
]
