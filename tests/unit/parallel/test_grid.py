"""The ranks as a grid."""

from __future__ import annotations

import numpy as np
import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import Collective, Communicator, ring_allreduce, run_threads
from hpdl_mpi.parallel.grid import ProcessGrid


def test_last_axis_is_innermost() -> None:
    def place(comm: Communicator) -> tuple:
        grid = ProcessGrid(comm, {"pp": 2, "dp": 3})
        members = [grid.axis(name).allgather_obj(comm.rank) for name in ("pp", "dp")]
        return grid.coordinate("pp"), grid.coordinate("dp"), *members

    assert run_threads(6, place) == [
        (0, 0, [0, 3], [0, 1, 2]),
        (0, 1, [1, 4], [0, 1, 2]),
        (0, 2, [2, 5], [0, 1, 2]),
        (1, 0, [0, 3], [3, 4, 5]),
        (1, 1, [1, 4], [3, 4, 5]),
        (1, 2, [2, 5], [3, 4, 5]),
    ]


def test_rank_on_an_axis_is_its_coordinate() -> None:
    def same(comm: Communicator) -> bool:
        grid = ProcessGrid(comm, {"a": 2, "b": 1, "c": 4})
        return all(grid.axis(name).rank == grid.coordinate(name) for name in grid.shape)

    assert all(run_threads(8, same))


def test_no_group_is_made_for_an_axis_of_all_ranks_or_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def axes(comm: Communicator) -> tuple:
        monkeypatch.setattr(comm, "split", None)
        grid = ProcessGrid(comm, {"pp": 1, "dp": 3, "mp": 1})
        sizes = [(line.rank, line.size, line.num_nodes, line.node_size) for line in map(grid.axis, ("pp", "mp"))]
        grid.free()
        return grid.axis("dp") is comm, *sizes

    assert run_threads(3, axes) == [(True, (0, 1, 1, 1), (0, 1, 1, 1))] * 3


def test_grid_frees_what_it_has_made_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def freed(comm: Communicator) -> list[int]:
        groups = []
        for sizes in ({"pp": 2, "dp": 2}, {"pp": 1, "dp": 4}):
            grid = ProcessGrid(comm, sizes)
            for group in {comm, *map(grid.axis, sizes)}:
                monkeypatch.setattr(group, "free", lambda size=group.size: groups.append(size))
            grid.free()
        return groups

    assert run_threads(4, freed) == [[2, 2]] * 4


def test_collective_on_an_axis_takes_no_message_of_the_ranks_own() -> None:
    """The axis may be the very communicator that the ranks send on."""

    def total(comm: Communicator) -> float:
        other = 1 - comm.rank
        array, received = np.array([1.0]), np.zeros(1)
        sending = comm.isend(np.array([5.0]), other)
        line = ProcessGrid(comm, {"pp": 1, "dp": 2}).axis("dp")
        Collective(line, ring_allreduce(2, 1, comm.rank), array)()
        comm.allreduce(array)
        comm.recv(received, other)
        sending.wait()
        return array[0] + received[0]

    assert run_threads(2, total) == [9.0, 9.0]


def test_grid_of_another_size_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        run_threads(4, lambda comm: ProcessGrid(comm, {"pp": 3, "dp": 1}))
    assert str(caught.value) == (
        "parallel.pp x parallel.dp: the grid does not fit the number of ranks. Found 3 x 1 places; expected 4, the "
        "number of ranks that the launcher started. Change the job's grid, or start as many ranks as it has places."
    )


def test_axis_without_ranks_is_refused() -> None:
    with pytest.raises(InputError, match=r"parallel\.pp: an axis needs at least one rank. Found 0"):
        run_threads(1, lambda comm: ProcessGrid(comm, {"pp": 0, "dp": 1}))
