"""What one rank finds out for all: its result, or its error, on every rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from hpdl_mpi.base.errors import HpdlError
from hpdl_mpi.comm.communicator import Communicator

Result = TypeVar("Result")


def agree(comm: Communicator, function: Callable[[], Result]) -> Result:
    """Call a function on rank 0 and return its result, or raise its error, on every rank. Collective.

    Meant for checks of what all ranks are given alike, such as the job file: one rank looks, one rank speaks, and the
    program ends in order everywhere.

    Parameters
    ----------
    comm : Communicator
        All ranks of the job.
    function : callable
        Returns something that can be pickled.

    Returns
    -------
    object
        What the function returned on rank 0.

    Raises
    ------
    HpdlError
        What the function raised, on every rank. Uncaught, it ends the job with its exit code and one message.
    """
    outcome: tuple[Result | None, HpdlError | None] | None = None
    if comm.rank == 0:
        try:
            outcome = (function(), None)
        except HpdlError as error:
            error.shared = True
            outcome = (None, error)
    result, failure = comm.bcast_obj(outcome)
    if failure is not None:
        raise failure
    return result
