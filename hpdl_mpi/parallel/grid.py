"""The ranks of a job as a grid with named axes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import Communicator, SingleCommunicator


class ProcessGrid:
    """The ranks in a grid: ``ProcessGrid(comm, {"pp": 2, "dp": 2})``. Collective.

    An MPI library holds some two thousand groups at once, so a grid makes none in vain: the group of an axis that
    covers all ranks is `comm` itself, that of an axis of one rank needs no MPI.

    Parameters
    ----------
    comm : Communicator
        The ranks, numbered along the last axis first.
    axes : mapping of str to int
        The size of each axis. Ranks that talk most belong on the innermost, last one: its neighbours share a machine.

    Attributes
    ----------
    comm : Communicator
        All ranks of the grid.
    shape : dict of str to int
        The size of each axis.

    Raises
    ------
    InputError
        The sizes are not positive, or their product is not the number of ranks.
    """

    def __init__(self, comm: Communicator, axes: Mapping[str, int]) -> None:
        check_shape(axes, comm.size)
        self.comm = comm
        self.shape = dict(axes)
        ranks = np.arange(comm.size).reshape(tuple(axes.values()))
        place = np.argwhere(ranks == comm.rank)[0].tolist()
        self._coordinates = dict(zip(axes, place, strict=True))
        self._axes: dict[str, Communicator] = {}
        self._made: list[Communicator] = []
        for dim, name in enumerate(axes):
            # The ranks along an axis are called after the first of them.
            first = ranks[tuple(0 if other == dim else index for other, index in enumerate(place))]
            self._axes[name] = self._line(axes[name], int(first), self._coordinates[name])

    def _line(self, size: int, color: int, key: int) -> Communicator:
        if size == self.comm.size:
            return self.comm
        if size == 1:
            return SingleCommunicator()
        group = self.comm.split(color, key)
        self._made.append(group)
        return group

    def axis(self, name: str) -> Communicator:
        """Return the group of the ranks that differ from this one in this coordinate only, in its order.

        It belongs to the grid, or is the grid's own `comm`: leave its freeing to `free`.
        """
        return self._axes[name]

    def machines(self, name: str) -> list[list[int]]:
        """Return the machines of the ranks of each group along an axis, the same on all ranks."""
        ranks = np.arange(self.comm.size).reshape(tuple(self.shape.values()))
        lines = np.moveaxis(ranks, list(self.shape).index(name), -1).reshape(-1, self.shape[name])
        return [[self.comm.nodes[rank] for rank in line] for line in lines.tolist()]

    def coordinate(self, name: str) -> int:
        """Return this rank's place on an axis."""
        return self._coordinates[name]

    def free(self) -> None:
        """Give back the groups that the grid has made, not `comm`. Collective; see `Communicator.free`."""
        for group in self._made:
            group.free()


def check_shape(axes: Mapping[str, int], world_size: int) -> None:
    """Raise InputError, with the keys of the job file, unless a grid of this shape has as many places as the world."""
    for name, size in axes.items():
        if size < 1:
            raise InputError("an axis needs at least one rank", where=f"parallel.{name}", found=size)
    if np.prod(list(axes.values()), dtype=int) != world_size:
        keys = " x ".join(f"parallel.{name}" for name in axes)
        product = " x ".join(str(size) for size in axes.values())
        raise InputError(
            "the grid does not fit the number of ranks",
            where=keys,
            found=f"{product} places",
            expected=f"{world_size}, the number of ranks that the launcher started",
            remedy="Change the job's grid, or start as many ranks as it has places",
        )
