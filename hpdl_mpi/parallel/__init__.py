"""How ranks train together: the grid of ranks and the data-parallel step."""

from hpdl_mpi.parallel.data_parallel import DataParallelStep, StepReport
from hpdl_mpi.parallel.grid import ProcessGrid
from hpdl_mpi.parallel.replica import Replica

__all__ = ["DataParallelStep", "ProcessGrid", "Replica", "StepReport"]
