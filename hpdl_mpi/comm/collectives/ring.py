"""Rings: every rank passes chunks to its neighbour.

The ring is bandwidth-optimal: each rank sends 2 (p - 1) / p of the array, which is the least possible [1]_. Chunk k is
summed on its way around the ring, from rank k + 1 to rank k, so its additions have one order, and everyone copies the
same bits afterwards.

References
----------
.. [1] P. Patarasuk and X. Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", Journal of
   Parallel and Distributed Computing 69 (2), 2009.
"""

from __future__ import annotations

from hpdl_mpi.base.shares import share
from hpdl_mpi.comm.collectives.adapt import among, shifted
from hpdl_mpi.comm.schedule import Op, Program, Round, Step


def ring_reduce_scatter(num_ranks: int, num_elements: int, rank: int) -> Program:
    """Sum the arrays so that rank r ends with chunk r of the sum; the other chunks hold partial sums."""
    return _ring(num_ranks, num_elements, rank, Op.RECV_REDUCE, first_chunk=-1)


def ring_all_gather(num_ranks: int, num_elements: int, rank: int) -> Program:
    """Copy chunk r of rank r to all others."""
    return _ring(num_ranks, num_elements, rank, Op.RECV, first_chunk=0)


def ring_allreduce(num_ranks: int, num_elements: int, rank: int) -> Program:
    """Sum the arrays so that every rank ends with the whole sum, the same bits everywhere."""
    return ring_reduce_scatter(num_ranks, num_elements, rank) + ring_all_gather(num_ranks, num_elements, rank)


def bidirectional_ring_allreduce(num_ranks: int, num_elements: int, rank: int) -> Program:
    """Sum half of the array around the ring one way and half the other way, for links that carry both ways at once.

    Two ranks have one link between them, and so one ring.
    """
    if num_ranks < 3:
        return ring_allreduce(num_ranks, num_elements, rank)
    half = num_elements // 2
    mirror = [-other % num_ranks for other in range(num_ranks)]
    forth = ring_allreduce(num_ranks, half, rank)
    back = shifted(among(ring_allreduce(num_ranks, num_elements - half, mirror[rank]), mirror), half)
    return [one + other for one, other in zip(forth, back, strict=True)]


def _ring(num_ranks: int, num_elements: int, rank: int, receive: Op, first_chunk: int) -> Program:
    """In each of p - 1 rounds, pass a chunk to the right and take the one before it from the left.

    Rank r begins with chunk r + `first_chunk`.
    """

    def step(op: Op, index: int, peer: int) -> Step:
        return Step(op, *share(num_elements, index % num_ranks, num_ranks), peer % num_ranks)

    def round_of(turn: int) -> Round:
        sent = rank + first_chunk - turn
        return step(Op.SEND, sent, rank + 1), step(receive, sent - 1, rank - 1)

    return [round_of(turn) for turn in range(num_ranks - 1)]
