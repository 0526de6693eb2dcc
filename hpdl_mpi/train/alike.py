"""What must be the same on every rank before a run begins; a difference is told once, not by a message of MPI's."""

from __future__ import annotations

from typing import Any

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import Communicator


def require_alike(comm: Communicator, value: Any, what: str, *, where: object, remedy: str) -> None:
    """Raise an InputError on all ranks unless `value` is the same on all of them. Collective.

    Parameters
    ----------
    comm : Communicator
    value : object
        Small, and comparable.
    what : str
        What it means if it differs.
    where : object
        The file, folder or part of the job that it concerns.
    remedy : str
    """
    values = comm.allgather_obj(value)
    astray = [rank for rank in range(comm.size) if values[rank] != values[0]]
    if astray:
        ranks = ", ".join(map(str, astray))
        raise InputError(what, where=where, found=f"a difference of rank {ranks} to rank 0", remedy=remedy, shared=True)
