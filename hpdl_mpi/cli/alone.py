"""What runs on one rank only."""

from __future__ import annotations

import os

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.base.launcher import launched


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
