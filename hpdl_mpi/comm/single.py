"""A rank on its own."""

from __future__ import annotations

from typing import NoReturn

from hpdl_mpi.comm.mailboxes import Mailboxes
from hpdl_mpi.comm.threads import ThreadCommunicator


class SingleCommunicator(ThreadCommunicator):
    """A group of one rank, without MPI: the world of a single process, or an axis of a grid that has one place.

    Every collective is over at once, and messages to itself wait in memory. `abort` ends this process only.
    """

    def __init__(self) -> None:
        super().__init__(Mailboxes(num_ranks=1), rank=0)

    def abort(self, code: int) -> NoReturn:
        raise SystemExit(code)
