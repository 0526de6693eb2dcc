"""How ranks train together: the grid of ranks, the pipelines in it, and the training step."""

from hpdl_mpi.parallel.grid import ProcessGrid
from hpdl_mpi.parallel.replica import Replica
from hpdl_mpi.parallel.step import StepReport, TrainingStep

__all__ = ["ProcessGrid", "Replica", "StepReport", "TrainingStep"]
