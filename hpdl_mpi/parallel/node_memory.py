"""Flat arrays that the data-parallel ranks of a machine have in memory which they share."""

from __future__ import annotations

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.base.memory import forget
from hpdl_mpi.comm import Arena, Communicator
from hpdl_mpi.kernels.update import Terms
from hpdl_mpi.parallel.grid import ProcessGrid
from hpdl_mpi.parallel.replica import Replica


def shares_machines(grid: ProcessGrid) -> bool:
    """Return whether data-parallel ranks are together on machines; the same on all ranks.

    Raises
    ------
    InputError
        Some machine has more of one group than another machine, or of another group.
    """
    counts = [line.count(node) for line in grid.machines("dp") for node in dict.fromkeys(line)]
    if len({*counts}) > 1:
        raise InputError(
            "needs as many data-parallel ranks on each machine",
            where="parallel.shared_memory",
            found=" and ".join(map(str, counts)),
            remedy="start as many on each (srun --ntasks-per-node), or leave it out",
            shared=True,
        )
    return counts[0] > 1


class NodeMemory:
    """Has a replica's gradients where the other ranks of the machine can read them, and if asked one copy of the
    parameters for all of them. Constructing it is collective.

    Parameters
    ----------
    dp : Communicator
        The data-parallel ranks, see `shares_machines`. Their replicas have equal parameters, and at least one.
    replica : Replica
        Has its arrays there until `free`. Its gradients are zero now.
    one_copy : bool
        Whether the machine's ranks share the parameters, too.

    Attributes
    ----------
    window : Window
        Of the gradients, which begin at the start of each rank's part.

    Raises
    ------
    InputError
        The machine has too little memory to share.
    """

    def __init__(self, dp: Communicator, replica: Replica, *, one_copy: bool) -> None:
        self._dp, self._replica = dp, replica
        dtype, nbytes, size = replica.dtype, replica.grads.nbytes, replica.layout.size
        self._arenas = [Arena(dp) for _ in range(1 + one_copy)]
        forget(replica.grads)  # so that there never are two of each
        for arena, needed in zip(self._arenas, (nbytes, -(-nbytes // dp.node_size)), strict=False):
            arena.reserve(needed)
        windows = [arena.window for arena in self._arenas if arena.window]
        if len(windows) < len(self._arenas):
            self._give_back()
            raise InputError(
                "too little memory that ranks can share",
                where="/dev/shm",
                expected=f"{nbytes} bytes for each rank of the machine{' and as much for all' if one_copy else ''}",
                remedy="give the container more (docker run --shm-size), or leave out parallel.shared_memory",
                shared=True,
            )
        self.window = windows[0]
        self._rows = self.window.memory.view(dtype).reshape(dp.node_size, -1)
        params = replica.params
        if one_copy:
            params = windows[1].memory.view(dtype)[:size]
            if dp.node_rank == 0:
                params[:] = replica.params
            dp.barrier()
        replica.move(params, self._rows[dp.node_rank, :size])

    def terms(self, first: int) -> Terms:
        """Return the gradients of the machine's ranks from an element on."""
        return Terms(self._rows, self._dp.node_rank, first)

    def free(self) -> None:
        """Give the memory back, and the replica arrays of its own. Collective."""
        self._replica.move(self._replica.params.copy(), self._replica.layout.allocate(self._replica.dtype))
        self._give_back()

    def _give_back(self) -> None:
        for arena in self._arenas:
            arena.free()  # when all ranks have come here
