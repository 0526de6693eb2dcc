"""Memory that ranks of a machine share, and one clock for all."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from hpdl_mpi.comm import (
    Arena,
    Communicator,
    SingleCommunicator,
    clock,
    clock_offset,
    run_threads,
    shared_rounds,
    threads,
)
from hpdl_mpi.comm.shared_rounds import SharedMemory
from hpdl_mpi.kernels.shared_steps import COPY, READ, STREAM


def write_to_all(comm: Communicator) -> list[list[int] | None]:
    """Let each rank write its number into everyone's memory; return what is in this rank's and whose it sees."""
    arena = Arena(comm)
    for nbytes in (8, 64, 32):
        arena.reserve(nbytes)
    for part in arena.parts:
        if part is not None:
            assert part.size >= 64
            part[comm.rank] = comm.rank + 1
    arena.sync()
    comm.barrier()
    arena.sync()
    mine = arena.parts[comm.rank]
    return [None if part is None else mine[rank] for rank, part in enumerate(arena.parts)]


def test_ranks_of_a_machine_write_into_each_others_memory() -> None:
    assert run_threads(3, write_to_all, nodes=[0, 0, 1]) == [[1, 2, None], [1, 2, None], [None, None, 3]]
    assert write_to_all(SingleCommunicator()) == [1]


def test_groups_have_memory_of_their_own() -> None:
    def run(comm: Communicator) -> list[list[int] | None]:
        return write_to_all(comm.split(comm.rank % 2))

    assert run_threads(4, run) == [[1, 2]] * 4


def test_where_there_is_no_memory_to_share_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads.ThreadCommunicator, "shareable_bytes", lambda self: 50)

    def run(comm: Communicator) -> None:
        arena = Arena(comm)
        arena.reserve(40)
        assert all(part is not None for part in arena.parts)
        arena.reserve(60)
        assert list(arena.parts) == [None, None]
        arena.free()
        arena.reserve(50)
        assert all(part is not None for part in arena.parts)

    run_threads(2, run)


def test_the_offset_of_clocks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.perf_counter()

    def run(comm: Communicator) -> float:
        clocks[comm.rank] = lambda: time.perf_counter() - start + 100.0 * comm.rank
        monkeypatch.setattr(clock, "now", lambda: clocks[int(__import__("threading").current_thread().name[5:])]())
        comm.barrier()
        return clock_offset(comm)

    clocks: dict[int, object] = {}
    found = run_threads(3, run)
    np.testing.assert_allclose(found, [0.0, -100.0, -200.0], atol=0.05)


@pytest.mark.parametrize(("slow", "expected"), [(COPY, True), (STREAM, False)], ids=["copied", "streamed"])
@pytest.mark.parametrize("nodes", [[0, 0, 0], [0, 1, 0]], ids=str)
def test_copies_pass_the_cache_where_others_read_slowly_what_went_through_it(
    slow: int, expected: bool, nodes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, written = threading.local(), {}

    def run_steps(table: np.ndarray, *arguments: object) -> int:
        [(code, _, size, place, _)] = table
        if code != READ:
            written[place], mine.place = code, place
        else:
            assert size * 4 >= 1 << 16
            assert (place == mine.place) == (nodes.count(nodes[mine.rank]) == 1), "it is the next rank's of the machine"
            mine.seconds += 10.0 if written[place] == slow else 1.0
        return 1

    def run(comm: Communicator) -> bool:
        mine.seconds, mine.rank = 0.0, comm.rank
        shared = SharedMemory(comm, 1 << 15, np.float32)
        shared.free()
        return shared.streams

    monkeypatch.setattr(shared_rounds, "now", lambda: mine.seconds)
    monkeypatch.setattr(shared_rounds.shared_steps, "run_steps", run_steps)
    assert run_threads(3, run, nodes=nodes) == [expected] * 3
