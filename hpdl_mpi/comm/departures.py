"""Who has left an MPI job, so that nobody waits for them."""

from __future__ import annotations

import math
import os
import socket
import sys
import time
from collections.abc import Sequence

import numpy as np
from mpi4py import MPI

from hpdl_mpi.base.errors import TrainingError
from hpdl_mpi.comm.communicator import Work
from hpdl_mpi.comm.whereabouts import describe, name_ranks

GRACE = 3.0
"""Seconds that the last messages of a rank that has left may take to arrive."""

NAP = 1e-4
"""Seconds between looks at what others do."""

_PARTING_SECONDS = 60.0
"""That ranks which have ended their programs wait for others before one says so."""

_NOTICE = 0.5
"""Seconds that one rank may notice later than another that a third one has left."""


class Departures:
    """Who has left the job: each rank tells all others when its program ends.

    MPI ends only when every rank comes to its end, so a rank that leaves early (``sys.exit`` in a script, say) would
    otherwise be waited for without end, by ranks that cannot know.

    Parameters
    ----------
    handle : MPI.Intracomm
        All ranks of the job, on a communicator for this purpose alone.
    """

    def __init__(self, handle: MPI.Intracomm) -> None:
        self._handle = handle
        self._process = os.getpid()
        self._left = False
        self._noticed: dict[int, float] = {}
        self._nothing = np.empty(0, np.uint8)

    def _listen(self) -> None:
        status = MPI.Status()
        while self._handle.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG, status):
            self._handle.Recv(self._nothing, status.source)
            self._noticed[status.source] = time.monotonic()

    def check(self, work: Work, world_ranks: Sequence[int], step: int) -> None:
        """Raise TrainingError if a peer that `work` waits for has left and can have nothing under way any more.

        `step` is that of training, 0 before the first one.
        """
        self._listen()
        for peer in work.peers:
            rank = world_ranks[peer]
            if rank in self._noticed and time.monotonic() - self._noticed[rank] > GRACE:
                raise TrainingError(
                    f"rank {rank} has ended its program; this rank still waited for it",
                    where=f"step {step}, {describe(work)}" if step else describe(work),
                    remedy="Every rank must make the same calls; look for the reason in what that rank printed",
                )

    @property
    def recent(self) -> bool:
        """Whether a rank has left, and those that wait for it may not have said so yet."""
        return any(time.monotonic() - noticed < GRACE + _NOTICE for noticed in self._noticed.values())

    def leave(self) -> None:
        """Tell the others, and wait until all have left: MPI may end then. Collective, once."""
        if self._left or os.getpid() != self._process or MPI.Is_finalized():
            return
        self._left = True
        others = [rank for rank in range(self._handle.size) if rank != self._handle.rank]
        farewells = [self._handle.Isend(self._nothing, rank) for rank in others]
        speaks_at = time.monotonic() + _PARTING_SECONDS
        while len(self._noticed) < len(others):
            self._listen()
            if time.monotonic() > speaks_at and self._handle.rank < min(self._noticed, default=self._handle.size):
                speaks_at = math.inf
                staying = name_ranks([rank for rank in others if rank not in self._noticed])
                where = f"[rank {self._handle.rank} of {self._handle.size} on {socket.gethostname()}]"
                print(f"{where} has ended its program and waits for {staying} to do so.", file=sys.stderr, flush=True)
            time.sleep(NAP)
        MPI.Request.Waitall(farewells)
