"""Flat arrays that the data-parallel ranks of a machine have in memory which they share."""

from __future__ import annotations

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import Arena, Communicator, Window
from hpdl_mpi.kernels.update import Terms
from hpdl_mpi.parallel.replica import Replica


class NodeMemory:
    """Has a replica's gradients where the other ranks of the machine can read them, and if asked one copy of the
    parameters for all of them. Constructing it is collective.

    Parameters
    ----------
    dp : Communicator
        The data-parallel ranks. Their replicas have equal parameters, and at least one.
    replica : Replica
        Has its arrays there until `free`.
    one_copy : bool
        Whether the machine's ranks share the parameters, too.

    Attributes
    ----------
    window : Window
        Of the gradients, which begin at the start of each rank's part.
    even : bool
        Whether all machines have equally many of the ranks.

    Raises
    ------
    InputError
        The machine has too little memory to share, or machines have unequal numbers of ranks for `one_copy`.
    """

    def __init__(self, dp: Communicator, replica: Replica, *, one_copy: bool) -> None:
        self._dp, self._replica = dp, replica
        self.even = len({dp.nodes.count(node) for node in dp.nodes}) == 1
        if one_copy and not self.even:
            raise InputError(
                "needs as many ranks on each machine",
                where="parallel.shared_memory = 'parameters'",
                found=", ".join(str(dp.nodes.count(node)) for node in range(dp.num_nodes)),
                remedy="start as many on each (srun --ntasks-per-node), or leave it out",
                shared=True,
            )
        dtype, nbytes = replica.dtype, replica.grads.nbytes
        self._arenas = [Arena(dp)]
        self.window = _reserve(self._arenas[0], nbytes)
        self._rows = self.window.memory.view(dtype).reshape(dp.node_size, -1)
        grads = self._rows[dp.node_rank, : replica.layout.size]
        grads[:] = replica.grads
        params = replica.params
        if one_copy:
            self._arenas.append(Arena(dp))
            memory = _reserve(self._arenas[1], -(-nbytes // dp.node_size)).memory
            params = memory.view(dtype)[: replica.layout.size]
            if dp.node_rank == 0:
                params[:] = replica.params
            dp.barrier()
        replica.move(params, grads)

    def terms(self, first: int) -> Terms:
        """Return the gradients of the machine's ranks from an element on."""
        return Terms(self._rows, self._dp.node_rank, first)

    def free(self) -> None:
        """Give the memory back, and the replica arrays of its own. Collective."""
        self._replica.move(self._replica.params.copy(), self._replica.grads.copy())
        for arena in self._arenas:
            arena.free()  # when all ranks have come here


def _reserve(arena: Arena, nbytes: int) -> Window:
    arena.reserve(nbytes)
    if arena.window is None:
        raise InputError(
            "too little memory that ranks can share",
            where="/dev/shm",
            expected=f"{nbytes} bytes for each rank of the machine",
            remedy="give the container more (docker run --shm-size), or leave out parallel.shared_memory",
            shared=True,
        )
    return arena.window
