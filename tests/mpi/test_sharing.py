"""Memory that processes of a machine share."""

from __future__ import annotations

import numpy as np

from hpdl_mpi.comm import Arena, Communicator, clock_offset


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
