"""Memory that ranks of a machine share, and one clock for all."""

from __future__ import annotations

import time

import numpy as np
import pytest

from hpdl_mpi.comm import Arena, Communicator, SingleCommunicator, clock, clock_offset, run_threads, threads


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
