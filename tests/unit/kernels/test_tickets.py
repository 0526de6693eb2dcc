"""Numbers that threads take in turn: each goes to one of them."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from numba.core.errors import TypingError

from hpdl_mpi.kernels.jit import kernel
from hpdl_mpi.kernels.tickets import take_ticket, tickets


@kernel
def take_all(tickets, taken):
    """Fill an array with numbers."""
    for i in range(taken.size):
        taken[i] = take_ticket(tickets)


def test_threads_get_each_number_once_and_in_order() -> None:
    shared = tickets()
    taken = [np.zeros(50_000, np.int64) for _ in range(4)]
    take_all(tickets(), taken[0][:1])  # compiled before threads race
    start = threading.Barrier(len(taken))

    def run(mine: np.ndarray) -> None:
        start.wait()
        take_all(shared, mine)

    threads = [threading.Thread(target=run, args=(mine,)) for mine in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(np.sort(np.concatenate(taken)), np.arange(200_000))
    assert all((np.diff(mine) > 0).all() for mine in taken)


def test_what_are_no_tickets_is_refused() -> None:
    with pytest.raises(TypingError, match="tickets are flat int64; found array"):
        take_all(np.zeros(1, np.float32), np.zeros(1, np.int64))
