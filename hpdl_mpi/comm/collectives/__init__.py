"""The collectives: functions ``(num_ranks, num_elements, rank)`` that return one rank's program."""

from hpdl_mpi.comm.collectives.adapt import among, shifted
from hpdl_mpi.comm.collectives.algorithms import ALLREDUCES, LIBRARY, Algorithm
from hpdl_mpi.comm.collectives.doubling import halving_doubling_allreduce, recursive_doubling_allreduce
from hpdl_mpi.comm.collectives.hierarchical import (
    hierarchical_allreduce,
    hierarchical_window_gather,
    hierarchical_window_reduce,
    machine_barrier,
)
from hpdl_mpi.comm.collectives.ring import (
    bidirectional_ring_allreduce,
    ring_all_gather,
    ring_allreduce,
    ring_reduce_scatter,
)
from hpdl_mpi.comm.collectives.shared import one_shot_allreduce, two_shot_allreduce, window_allreduce
from hpdl_mpi.comm.collectives.tree import tree_allreduce

__all__ = [
    "ALLREDUCES",
    "LIBRARY",
    "Algorithm",
    "among",
    "bidirectional_ring_allreduce",
    "halving_doubling_allreduce",
    "hierarchical_allreduce",
    "hierarchical_window_gather",
    "hierarchical_window_reduce",
    "machine_barrier",
    "one_shot_allreduce",
    "recursive_doubling_allreduce",
    "ring_all_gather",
    "ring_allreduce",
    "ring_reduce_scatter",
    "shifted",
    "tree_allreduce",
    "two_shot_allreduce",
    "window_allreduce",
]
