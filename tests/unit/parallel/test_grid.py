"""The ranks as a grid."""

from __future__ import annotations

import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import Communicator, run_threads
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
