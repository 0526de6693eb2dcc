"""PyTorch's processes over Gloo: a child of each rank, which sleeps between turns."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

from hpdl_mpi.bench.contender import Contender, pool_sizes, worker_command
from hpdl_mpi.comm import Communicator, agree

REMEDY = "Install PyTorch with pip install 'hpdl_mpi[bench]'"


def make_gloo_contender(
    comm: Communicator, name: str, loader: str, settings: Mapping[str, Any], *, threads: int = 1
) -> Contender:
    """Return this rank's child of a group over Gloo. Collective, and so is entering it.

    Parameters
    ----------
    comm : Communicator
        The ranks whose children meet.
    name : str
    loader : str
        ``module:function``, see `worker`; it is also given `rank`, `world_size`, `address` and `threads`.
    settings : mapping
    threads : int
    """
    address = agree(comm, lambda: _free_address(comm.num_nodes))
    place = {"rank": comm.rank, "world_size": comm.size, "address": address, "threads": threads}
    # Compile in the contender itself: a pool of compiling processes would outlive its use.
    environ = pool_sizes(threads) | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
    return Contender(name, worker_command(loader, {**settings, **place}), environ=environ, remedy=REMEDY)


def _free_address(num_nodes: int) -> str:
    """Return an address of this machine at which nobody listens; ``MASTER_ADDR`` names the machine to others."""
    host = "127.0.0.1" if num_nodes == 1 else os.environ.get("MASTER_ADDR") or socket.gethostname()
    with socket.socket() as probe:
        probe.bind(("", 0))
        return f"{host}:{probe.getsockname()[1]}"
