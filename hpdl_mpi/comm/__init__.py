"""How ranks talk: communicators, and collectives as schedules. The only room that imports mpi4py."""

from hpdl_mpi.base.agree import agree, agree_all
from hpdl_mpi.comm.allreduce import AUTO, find_wire, make_allreduce, segment_bytes_between
from hpdl_mpi.comm.arena import Arena
from hpdl_mpi.comm.calls import describe_collective
from hpdl_mpi.comm.choice import choose_allreduce
from hpdl_mpi.comm.clock import clock_offset
from hpdl_mpi.comm.collectives import (
    ALLREDUCES,
    LIBRARY,
    among,
    hierarchical_window_gather,
    hierarchical_window_reduce,
    machine_barrier,
    ring_all_gather,
    ring_allreduce,
    ring_reduce_scatter,
    shifted,
    window_allreduce,
)
from hpdl_mpi.comm.communicator import Communicator, Transfer, Work
from hpdl_mpi.comm.execute import Collective, compile_reduction
from hpdl_mpi.comm.shared_rounds import SharedMemory
from hpdl_mpi.comm.single import SingleCommunicator
from hpdl_mpi.comm.threads import run_threads
from hpdl_mpi.comm.window import Window
from hpdl_mpi.comm.world import world

__all__ = [
    "ALLREDUCES",
    "AUTO",
    "LIBRARY",
    "Arena",
    "Collective",
    "Communicator",
    "SharedMemory",
    "SingleCommunicator",
    "Transfer",
    "Window",
    "Work",
    "agree",
    "agree_all",
    "among",
    "choose_allreduce",
    "clock_offset",
    "compile_reduction",
    "describe_collective",
    "find_wire",
    "hierarchical_window_gather",
    "hierarchical_window_reduce",
    "machine_barrier",
    "make_allreduce",
    "ring_all_gather",
    "ring_allreduce",
    "ring_reduce_scatter",
    "run_threads",
    "segment_bytes_between",
    "shifted",
    "window_allreduce",
    "world",
]
