"""Communicators whose ranks are threads, and the one of a single process."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from hpdl_mpi.base.errors import TrainingError
from hpdl_mpi.comm import Communicator, SingleCommunicator, run_threads
from hpdl_mpi.comm.faults import Delay, Drop, Kill
from tests.collective_cases import COLLECTIVES
from tests.communicator_cases import VERBS

CASES = pytest.mark.parametrize("case", VERBS + COLLECTIVES, ids=lambda case: case.__name__)


@CASES
@pytest.mark.parametrize("num_ranks", range(1, 10))
def test_thread_ranks(case: Callable[[Communicator], None], num_ranks: int) -> None:
    run_threads(num_ranks, case)


@CASES
def test_single_process(case: Callable[[Communicator], None]) -> None:
    case(SingleCommunicator())


def test_results_come_in_the_order_of_ranks() -> None:
    assert run_threads(4, lambda comm: comm.rank**2) == [0, 1, 4, 9]


def test_ranks_can_be_placed_on_machines() -> None:
    places = run_threads(4, lambda comm: (comm.node, comm.node_rank, comm.node_size), nodes=[7, 7, 3, 7])
    assert places == [(0, 0, 3), (0, 1, 3), (1, 0, 1), (0, 2, 3)]
    parts = run_threads(4, lambda comm: comm.split(comm.rank // 2).num_nodes, nodes=[7, 7, 3, 7])
    assert parts == [1, 1, 2, 2]


def test_first_failure_is_raised_and_stops_the_others() -> None:
    stopped = []

    def fail(comm: Communicator) -> None:
        if comm.rank == 1:
            raise KeyError("mine")
        try:
            comm.recv(np.zeros(1), 1)
        except TrainingError as error:
            stopped.append(str(error))
            raise

    with pytest.raises(KeyError, match="mine"):
        run_threads(3, fail)
    assert sorted(stopped) == [f"rank {rank}: rank 1 failed: KeyError('mine')." for rank in (0, 2)]


def test_deadlock_raises_and_says_what_every_rank_waited_for() -> None:
    def wait_for_the_left(comm: Communicator) -> None:
        if comm.rank < 2:
            comm.recv(np.zeros(2), 1 - comm.rank, tag=4)

    with pytest.raises(TrainingError, match="no rank can go on") as caught:
        run_threads(3, wait_for_the_left)
    text = str(caught.value)
    assert "rank 0 waits: rank 0: recv of 16 bytes from rank 1, tag 4" in text
    assert "rank 1 waits: rank 1: recv of 16 bytes from rank 0, tag 4" in text
    assert "rank 2 has returned" in text


def test_single_process_that_waits_for_nothing_raises() -> None:
    with pytest.raises(TrainingError, match="no rank can go on"):
        SingleCommunicator().recv(np.zeros(1), 0)


def test_rank_that_never_ends_is_shown_with_its_stack() -> None:
    over = []

    def spin_for_ever(comm: Communicator) -> None:
        while comm.rank == 1 and not over:
            time.sleep(0.01)

    with pytest.raises(TrainingError, match=r"(?s)still ran after 0.2 s.*rank 1 runs.*spin_for_ever"):
        run_threads(2, spin_for_ever, timeout=0.2)
    over.append(True)


def test_abort_stops_all_ranks() -> None:
    def stop(comm: Communicator) -> None:
        if comm.rank == 1:
            comm.abort(3)
        comm.barrier()

    with pytest.raises(TrainingError, match="rank 1: aborted the job with exit code 3"):
        run_threads(3, stop)
    with pytest.raises(SystemExit) as caught:
        SingleCommunicator().abort(3)
    assert caught.value.code == 3


def exchange(comm: Communicator) -> list[float]:
    """Send 0, 1, 2 from rank 0 to rank 1, which returns what it got."""
    got = np.zeros(3)
    for index in range(3):
        if comm.rank == 0:
            comm.send(np.array([float(index)]), 1)
        else:
            comm.recv(got[index : index + 1], 0)
    return got.tolist()


def test_delayed_messages_come_late_and_in_order() -> None:
    start = time.monotonic()
    assert run_threads(2, exchange, faults=[Delay(0, 1, seconds=0.1)])[1] == [0.0, 1.0, 2.0]
    assert time.monotonic() - start >= 0.1


def test_dropped_message_is_missed_by_its_receiver() -> None:
    with pytest.raises(TrainingError, match=r"(?s)no rank can go on.*rank 0 has returned.*rank 1 waits"):
        run_threads(2, exchange, faults=[Drop(0, 1, index=1)])


def test_killed_rank_never_answers() -> None:
    with pytest.raises(TrainingError, match=r"(?s)no rank can go on.*rank 0 was killed.*rank 1 waits"):
        run_threads(2, exchange, faults=[Kill(0, index=2)])


def test_killed_rank_that_nobody_misses_is_still_reported() -> None:
    with pytest.raises(TrainingError, match="rank 1: killed by the plan of faults"):
        run_threads(2, exchange, faults=[Kill(1, index=2)])
