"""One clock for all ranks."""

from __future__ import annotations

import numpy as np

from hpdl_mpi.base.trace import now
from hpdl_mpi.comm.communicator import Communicator

_ROUNDS = 20


def clock_offset(comm: Communicator) -> float:
    """Return what must be added to this rank's clock (`now`) to get rank 0's. Collective.

    Each rank asks rank 0 for the time, over and over. The fastest answer is the best: rank 0 read its clock between
    question and answer, so half of their distance bounds the error (Cristian, "Probabilistic clock synchronization",
    1989).
    """
    offset = 0.0
    for rank in range(1, comm.size):
        if comm.rank == 0:
            _answer(comm, rank)
        elif comm.rank == rank:
            offset = _ask(comm)
    return offset


def _answer(comm: Communicator, rank: int) -> None:
    question, time = np.empty(0), np.empty(1)
    for _ in range(_ROUNDS):
        comm.recv(question, rank)
        time[0] = now()
        comm.send(time, rank)


def _ask(comm: Communicator) -> float:
    answers = []
    question, time = np.empty(0), np.empty(1)
    for _ in range(_ROUNDS):
        asked = now()
        comm.send(question, 0)
        comm.recv(time, 0)
        answered = now()
        answers.append((answered - asked, time[0] - (asked + answered) / 2))
    return float(min(answers)[1])
