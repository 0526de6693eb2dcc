"""The watch over ranks that wait: it finds every deadlock and takes nothing else for one."""

from __future__ import annotations

from collections.abc import Sequence

from hpdl_mpi.comm.communicator import Work
from hpdl_mpi.comm.mailboxes import Mailboxes


class LateWrite(Work):
    """Waits for what rank 1 writes into shared memory; rank 1 writes it, and ends, just after the first look."""

    def __init__(self, mailboxes: Mailboxes) -> None:
        self.mailboxes = mailboxes
        self.looks = 0

    def test(self) -> bool:
        self.looks += 1
        if self.looks == 1:
            self.mailboxes.end(1, None)
            return False
        return True

    @property
    def peers(self) -> Sequence[int]:
        return [1]

    @property
    def progress(self) -> int:
        return 0


def test_what_a_rank_wrote_before_it_ended_is_looked_at_once_more() -> None:
    mailboxes = Mailboxes(2)
    work = LateWrite(mailboxes)
    mailboxes.wait_for(work, 0)
    assert work.looks == 2
