"""What runs on one rank only, and how many there are."""

from __future__ import annotations

import os

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.base.launcher import launched


def several_ranks() -> bool:
    """Return whether a launcher has started more than one process."""
    found = launched(os.environ)
    return found is not None and found[1] > 1


def require_one_rank(command: str) -> None:
    """Refuse a command under a launcher of several processes, each of which would do all of it."""
    if (found := launched(os.environ)) and found[1] > 1:
        raise InputError(
            "runs on one rank",
            where=command,
            found=f"{found[0]}={found[1]}",
            remedy="start it without a launcher",
            shared=True,
        )
