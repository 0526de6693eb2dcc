"""Memory that processes of a machine share."""

from __future__ import annotations

import os

import numpy as np
import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import Arena, Communicator, Window, clock_offset, make_allreduce
from hpdl_mpi.parallel.pipeline import make_schedule
from tests.pipeline_training import check_outcomes, make_batch, run_alone, run_grid


def test_processes_write_into_each_others_memory(world: Communicator) -> None:
    arena = Arena(world)
    for nbytes in (1000, 1 << 20):
        arena.reserve(nbytes)
        for part in arena.parts:
            part.view(np.int64)[world.rank] = 10 + world.rank
        arena.sync()
        world.barrier()
        arena.sync()
        mine = arena.parts[world.rank].view(np.int64)
        assert mine[: world.size].tolist() == [10 + rank for rank in range(world.size)]
        assert not mine[world.size :].any()


def test_clocks_of_one_machine_agree(world: Communicator) -> None:
    assert abs(clock_offset(world)) < 1e-3


def test_messages_do_where_the_machine_has_no_memory_to_share(world: Communicator, monkeypatch) -> None:
    monkeypatch.setattr(type(world), "shareable_bytes", lambda self: 0)
    schedule = make_schedule("1f1b", world.size, 4)
    cuts = [2, 4, 6][: world.size - 1]
    found = world.allgather_obj(run_grid(world, 1, schedule, cuts, make_batch(13)))
    check_outcomes(found, run_alone(make_batch(13), 4))


def test_where_the_library_has_no_more_windows_messages_do(world: Communicator) -> None:
    windows: list[Window] = []
    # MPICH has some 2,000 groups, and a window takes two.
    with pytest.raises(InputError, match="the MPI library gives no window"):
        windows.extend(world.share(8) for _ in range(4000))
    total = np.ones(1000, np.float32)
    allreduce = make_allreduce(world, total)
    assert allreduce.algorithm == "ring"
    allreduce()
    assert (total == world.size).all()
    with pytest.raises(
        InputError, match=r"the MPI library gives no window\. Found [^.]*\. Have fewer buckets.*bucket_cap_mb"
    ):
        make_allreduce(world, total, "two_shot")
    for window in windows:
        window.free()
    world.share(8).free()


def test_what_a_rank_may_share_leaves_enough_for_all_of_its_machine(world: Communicator, monkeypatch) -> None:
    state = os.statvfs("/dev/shm")
    monkeypatch.setattr(os, "statvfs", lambda path: state)
    assert world.shareable_bytes() * world.size <= state.f_bavail * state.f_frsize
