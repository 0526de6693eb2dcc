"""Choices that are measured: what layers cost, and where to cut a model for a pipeline."""

from hpdl_mpi.plan.costs import Task, measure_layers
from hpdl_mpi.plan.pipeline import plan_pipeline, stage_costs

__all__ = ["Task", "measure_layers", "plan_pipeline", "stage_costs"]
