"""The MPI form of the communicator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import Communicator
from hpdl_mpi.parallel.grid import ProcessGrid
from tests.collective_cases import VERBS

pytestmark = pytest.mark.mpi(min_size=2)


@pytest.mark.parametrize("case", VERBS, ids=lambda case: case.__name__)
def test_mpi_ranks(case: Callable[[Communicator], None], world: Communicator) -> None:
    case(world)


def test_sends_that_block_until_received_do_not_deadlock_sendrecv(world: Communicator) -> None:
    # Large enough for no MPI library to buffer it.
    sent, received = np.full(1 << 20, world.rank), np.empty(1 << 20, np.int64)
    world.sendrecv(sent, (world.rank + 1) % world.size, received, (world.rank - 1) % world.size)
    assert (received == (world.rank - 1) % world.size).all()


def test_freed_groups_make_room_for_more(world: Communicator) -> None:
    # MPICH holds some 2000 at once.
    for _ in range(2200):
        world.split(0).free()
    assert world.split(0).allgather_obj(world.rank) == list(range(world.size))


def test_grid_has_one_communicator_per_axis(world: Communicator) -> None:
    grid = ProcessGrid(world, {"pp": 1, "dp": world.size})
    assert grid.axis("dp").allgather_obj(world.rank) == list(range(world.size))
    assert grid.axis("pp").allgather_obj(world.rank) == [world.rank]
    with pytest.raises(InputError, match=f"expected {world.size}"):
        ProcessGrid(world, {"pp": 2, "dp": world.size})
