"""Flat arrays that the data-parallel ranks of a machine have in memory which they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.base.memory import forget
from hpdl_mpi.comm import AUTO, Arena, Communicator
from hpdl_mpi.kernels.update import Terms
from hpdl_mpi.parallel.grid import ProcessGrid
from hpdl_mpi.parallel.replica import Replica

MemorySharing = Literal["auto", "none", "gradients", "parameters"]
"""What ranks of a machine have in memory that they share."""


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
    arenas : sequence of Arena
        Of the gradients, and of the parameters if they are shared, too. They are freed with it.

    Attributes
    ----------
    window : Window
        Of the gradients, which begin at the start of each rank's part.
    """

    def __init__(self, dp: Communicator, replica: Replica, arenas: Sequence[Arena]) -> None:
        self._dp, self._replica, self._arenas = dp, replica, arenas
        dtype, size = replica.dtype, replica.layout.size
        windows = [arena.window for arena in arenas if arena.window]
        self.window = windows[0]
        self._rows = self.window.memory.view(dtype).reshape(dp.node_size, -1)
        params = replica.params
        if len(windows) > 1:
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
        for arena in self._arenas:
            arena.free()  # when all ranks have come here


def wants_memory(grid: ProcessGrid, replica: Replica, wanted: MemorySharing, algorithm: str) -> bool:
    """Return whether data-parallel ranks shall share memory if there is enough; see `share_memory`, also of errors."""
    asked = _is_asked(replica, wanted) or (wanted == "auto" and _suits(grid, replica, algorithm))
    return replica.grads.nbytes > 0 and asked and shares_machines(grid)


def share_memory(grid: ProcessGrid, replica: Replica, wanted: MemorySharing, algorithm: str) -> NodeMemory | None:
    """Return where the data-parallel ranks of a machine have what they share, if they do. Collective.

    Parameters
    ----------
    grid : ProcessGrid
    replica : Replica
        Its gradients are zero. Its `sharding` says whether there is one copy of the parameters.
    wanted : {"auto", "none", "gradients", "parameters"}
        With "auto" they share gradients if all of a group are on one machine, which has the memory, and sum them whole
        and by `AUTO`.
    algorithm : str
        That sums gradients.

    Raises
    ------
    InputError
        The machine has too little memory to share, or see `shares_machines`.
    """
    if not wants_memory(grid, replica, wanted, algorithm):
        return None
    dp, nbytes, one_copy = grid.axis("dp"), replica.grads.nbytes, _has_one_copy(replica)
    arenas = [Arena(dp) for _ in range(1 + one_copy)]
    forget(replica.grads)  # so that there never are two of each
    for arena, needed in zip(arenas, (nbytes, -(-nbytes // dp.node_size)), strict=False):
        arena.reserve(needed)
    if all(arena.window for arena in arenas):
        return NodeMemory(dp, replica, arenas)
    short = next(arena for arena in arenas if not arena.window)
    for arena in arenas:
        arena.free()
    if not _is_asked(replica, wanted):
        return None
    raise short.shortage("or leave out parallel.shared_memory")


def _has_one_copy(replica: Replica) -> bool:
    return replica.sharding is not None and replica.sharding.one_copy


def _is_asked(replica: Replica, wanted: MemorySharing) -> bool:
    return _has_one_copy(replica) or wanted in ("gradients", "parameters")


def _suits(grid: ProcessGrid, replica: Replica, algorithm: str) -> bool:
    plain = algorithm == AUTO and replica.sharding is None and replica.feedback is None
    return plain and all(len({*line}) == 1 for line in grid.machines("dp"))
