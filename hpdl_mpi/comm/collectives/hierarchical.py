"""All-reduce for several machines with several ranks each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hpdl_mpi.base.shares import share
from hpdl_mpi.comm.collectives.adapt import among, shifted
from hpdl_mpi.comm.collectives.ring import ring_allreduce
from hpdl_mpi.comm.collectives.shared import exchange
from hpdl_mpi.comm.schedule import Program


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
    machines = [[peer for peer, other in enumerate(nodes) if other == node] for node in dict.fromkeys(nodes)]
    index, here = next((index, ranks) for index, ranks in enumerate(machines) if rank in ranks)
    num_speakers = min(map(len, machines))
    inside = (here, num_speakers, num_elements, rank, piece)
    own = here.index(rank)
    middle: Program = []
    if own < num_speakers:
        start, stop = share(num_elements, own, num_speakers)
        program = between(len(machines), stop - start, index)
        middle = shifted(among(program, [ranks[own] for ranks in machines]), start)
    return exchange(*inside, gathers=False) + middle + exchange(*inside, reduces=False)
