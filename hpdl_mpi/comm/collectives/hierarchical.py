"""All-reduce for several machines with several ranks each, and its halves where arrays lie in shared memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hpdl_mpi.base.shares import share
from hpdl_mpi.comm.collectives.adapt import among, shifted
from hpdl_mpi.comm.collectives.ring import ring_allreduce
from hpdl_mpi.comm.collectives.shared import exchange, meeting, over_chunk
from hpdl_mpi.comm.schedule import Op, Program


def hierarchical_allreduce(
    nodes: Sequence[int],
    num_elements: int,
    rank: int,
    piece: int | None = None,
    between: Callable[[int, int, int], Program] = ring_allreduce,
) -> Program:
    """Sum inside each machine through shared memory, then between machines, then copy back inside.

    Each machine has as many speakers as the smallest has ranks; each speaks for a chunk of the array, so that as much
    goes over the network at once as may.

    Parameters
    ----------
    nodes : sequence of int
        The machine of each rank.
    num_elements, rank : int
    piece : int, optional
        See `two_shot_allreduce`.
    between : callable
        The all-reduce between machines.
    """
    machines, index = _machines(nodes, rank)
    here = machines[index]
    num_speakers = min(map(len, machines))
    inside = (here, num_speakers, num_elements, rank, piece)
    own = here.index(rank)
    middle: Program = []
    if own < num_speakers:
        middle = _between(machines, index, own, share(num_elements, own, num_speakers), between)
    return exchange(*inside, gathers=False) + middle + exchange(*inside, reduces=False)


def hierarchical_window_reduce(nodes: Sequence[int], num_elements: int, rank: int, piece: int | None = None) -> Program:
    """Sum arrays that lie in the windows themselves, so that each rank of a machine has the sum of its own chunk.

    A rank adds up its chunk where the others of its machine have it, and then the sums of the machines, with its
    fellows there. Others may still read its other chunks when it is done. All machines have equally many ranks. See
    `hierarchical_allreduce` for the parameters.
    """
    machines, index = _machines(nodes, rank)
    here = machines[index]
    own, meet = here.index(rank), meeting(here, rank)
    chunk = share(num_elements, own, len(here))
    middle = _between(machines, index, own, chunk, ring_allreduce) if len(machines) > 1 else []
    reads = over_chunk(here, rank, chunk, (Op.READ_REDUCE,), piece)
    return ([(*meet, *reads)] if meet else []) + middle


def hierarchical_window_gather(nodes: Sequence[int], num_elements: int, rank: int, piece: int | None = None) -> Program:
    """Write each rank's chunk of arrays that lie in the windows to the others of its machine; see the one above."""
    machines, index = _machines(nodes, rank)
    here = machines[index]
    chunk = share(num_elements, here.index(rank), len(here))
    meet = meeting(here, rank)
    return [(*over_chunk(here, rank, chunk, (Op.WRITE,), piece), *meet)] if meet else []


def machine_barrier(nodes: Sequence[int], num_elements: int, rank: int) -> Program:
    """Let the ranks of each machine wait for one another, whatever the array."""
    machines, index = _machines(nodes, rank)
    meet = meeting(machines[index], rank)
    return [meet] if meet else []


def _machines(nodes: Sequence[int], rank: int) -> tuple[list[list[int]], int]:
    """Return the ranks of each machine, and the number of this rank's."""
    machines = [[peer for peer, other in enumerate(nodes) if other == node] for node in dict.fromkeys(nodes)]
    return machines, next(index for index, ranks in enumerate(machines) if rank in ranks)


def _between(
    machines: Sequence[Sequence[int]],
    index: int,
    own: int,
    chunk: tuple[int, int],
    allreduce: Callable[[int, int, int], Program],
) -> Program:
    """Sum a chunk over the machines, by the rank of each that speaks for it."""
    start, stop = chunk
    return shifted(among(allreduce(len(machines), stop - start, index), [ranks[own] for ranks in machines]), start)
