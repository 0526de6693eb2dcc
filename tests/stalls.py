"""A job whose rank 1 does something else than the others between two steps."""

from __future__ import annotations

SECONDS = 2.0
"""That ranks may wait."""

GRACE = 5.0
"""That a job may take longer to end."""

SCRIPT = """
import ctypes, os, signal, sys, time
import numpy as np
from hpdl_mpi.comm import make_allreduce, world

comm = world()
gradients = make_allreduce(comm, np.ones(100_000, np.float32), "ring")
gradients.label = "gradients, bucket 0"
with comm.watched({seconds}):
    for step in range(1, 6):
        comm.begin_step(step)
        gradients()
    comm.barrier()
    if comm.rank == 1:
        print(time.time(), flush=True)
        {fault}
    comm.begin_step(6)
    gradients()
    comm.barrier()
"""


def script(fault: str) -> str:
    """Return the program of all ranks; rank 1 says the time, and does `fault`."""
    return SCRIPT.format(seconds=SECONDS, fault=fault)
