"""The MPI form of the communicator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from mpi4py import MPI

from hpdl_mpi.base.errors import InputError, TrainingError
from hpdl_mpi.comm import Communicator
from hpdl_mpi.comm.mpi_work import Joint
from hpdl_mpi.parallel.grid import ProcessGrid
from tests.communicator_cases import VERBS

pytestmark = pytest.mark.mpi(min_size=2)


@pytest.mark.parametrize("case", VERBS, ids=lambda case: case.__name__)
def test_mpi_ranks(case: Callable[[Communicator], None], world: Communicator) -> None:
    case(world)


def test_sends_that_block_until_received_do_not_deadlock_sendrecv(world: Communicator) -> None:
    # Large enough for no MPI library to buffer it.
    sent, received = np.full(1 << 20, world.rank), np.empty(1 << 20, np.int64)
    world.sendrecv(sent, (world.rank + 1) % world.size, received, (world.rank - 1) % world.size)
    assert (received == (world.rank - 1) % world.size).all()


@pytest.mark.parametrize("size", [2, 4])
def test_what_is_wrong_with_a_message_is_said_each_time_one_asks(world: Communicator, size: int) -> None:
    sending = world.isend(np.zeros(size), (world.rank + 1) % world.size)
    receiving = world.irecv(np.zeros(3), (world.rank - 1) % world.size)
    said = set()
    for _ in range(3):
        with pytest.raises(TrainingError) as failure:
            receiving.wait()
        said.add(str(failure.value))
    assert len(said) == 1
    sending.wait()


def test_a_message_that_was_wrong_once_may_be_right_the_next_time(world: Communicator) -> None:
    receiving = world.recv_init(np.zeros(3), (world.rank - 1) % world.size)
    for size in (2, 3):
        sending = world.isend(np.zeros(size), (world.rank + 1) % world.size)
        receiving.start()
        if size == 2:
            with pytest.raises(TrainingError, match="ranks disagree on a message"):
                receiving.wait()
        else:
            receiving.wait()
        sending.wait()


def test_freed_groups_make_room_for_more(world: Communicator) -> None:
    # MPICH holds some 2000 at once.
    for _ in range(2200):
        world.split(0).free()
    assert world.split(0).allgather_obj(world.rank) == list(range(world.size))


def test_grids_leave_room_for_more(world: Communicator) -> None:
    for _ in range(1100):
        line = ProcessGrid(world, {"pp": 1, "dp": world.size}).axis("dp")
    assert line.allgather_obj(world.rank) == list(range(world.size))
    if world.size == 4:
        for _ in range(1100):
            ProcessGrid(world, {"pp": 2, "dp": 2}).free()


def test_what_the_library_reports_of_a_collective_is_explained(world: Communicator) -> None:
    class Failing:
        def Test(self, status: MPI.Status | None) -> bool:
            raise MPI.Exception(MPI.ERR_OTHER)

    with pytest.raises(
        TrainingError, match=rf"rank {world.rank}: barrier of {world.size} ranks: the MPI library reports"
    ):
        Joint(world, Failing(), "barrier").test()


def test_axis_of_a_grid_has_its_ranks(world: Communicator) -> None:
    grid = ProcessGrid(world, {"pp": 1, "dp": world.size})
    assert grid.axis("dp").allgather_obj(world.rank) == list(range(world.size))
    assert grid.axis("pp").allgather_obj(world.rank) == [world.rank]
    with pytest.raises(InputError, match=f"expected {world.size}"):
        ProcessGrid(world, {"pp": 2, "dp": world.size})
