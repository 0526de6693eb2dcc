"""The one rank of a job that is a single process."""

from __future__ import annotations

from typing import NoReturn

from hpdl_mpi.comm.mailboxes import Mailboxes
from hpdl_mpi.comm.threads import ThreadCommunicator


class SingleCommunicator(ThreadCommunicator):
    """One rank on its own: every collective is over at once, and messages to itself wait in memory."""

    def __init__(self) -> None:
        super().__init__(Mailboxes(num_ranks=1), rank=0)

    def abort(self, code: int) -> NoReturn:
        raise SystemExit(code)
