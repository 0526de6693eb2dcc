"""The cluster of the tests itself: MPI programs run across both of its nodes."""

from __future__ import annotations

import sys

import pytest

from tests.cluster.slurm import SlurmCluster

pytestmark = pytest.mark.slurm

WHERE = """
import os
from mpi4py import MPI
nodes = MPI.COMM_WORLD.allgather(os.environ["SLURMD_NODENAME"])
if MPI.COMM_WORLD.rank == 0:
    print(MPI.COMM_WORLD.size, *sorted(set(nodes)))
"""


def test_srun_starts_one_mpi_world_on_both_nodes(slurm: SlurmCluster) -> None:
    result = slurm.run("srun", "--mpi=pmi2", "-N2", "-n4", "--overcommit", sys.executable, "-c", WHERE)
    assert (result.returncode, result.stdout) == (0, "4 n1 n2\n"), result.stderr
