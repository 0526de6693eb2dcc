"""Exchanges with ranks at distances 1, 2, 4, ...: as many rounds as the logarithm of the number of ranks.

Where that number is no power of two, some ranks lend their array to a neighbour first and get the result at the end.
"""

from __future__ import annotations

from collections.abc import Callable

from hpdl_mpi.base.shares import share
from hpdl_mpi.comm.collectives.adapt import among
from hpdl_mpi.comm.schedule import Op, Program, Step


def recursive_doubling_allreduce(num_ranks: int, num_elements: int, rank: int) -> Program:
    """Exchange all with a rank twice as far away each round, and add: the fewest rounds, for short messages.

    Both ends of an exchange add the same two numbers, so all ranks get the same bits.
    """

    def exchange(num_ranks: int, num_elements: int, rank: int) -> Program:
        distances = (1 << level for level in range(num_ranks.bit_length() - 1))
        ops = (Op.SEND, Op.RECV_REDUCE)
        return [tuple(Step(op, 0, num_elements, rank ^ distance) for op in ops) for distance in distances]

    return _folded(exchange, num_ranks, num_elements, rank)


def halving_doubling_allreduce(num_ranks: int, num_elements: int, rank: int) -> Program:
    """Exchange halves, then quarters, ... and add; then back, without adding (Rabenseifner, 2004) [1]_.

    As little traffic as in a ring, in fewer rounds. The longest messages go to the nearest ranks.

    References
    ----------
    .. [1] R. Rabenseifner, "Optimization of collective reduction operations", ICCS 2004.
    """
    return _folded(_halving_doubling, num_ranks, num_elements, rank)


def _halving_doubling(num_ranks: int, num_elements: int, rank: int) -> Program:
    def step(op: Op, first_chunk: int, num_chunks: int, peer: int) -> Step:
        start, _ = share(num_elements, first_chunk, num_ranks)
        _, stop = share(num_elements, first_chunk + num_chunks - 1, num_ranks)
        return Step(op, start, stop, peer)

    halving: Program = []
    doubling: Program = []
    first, count, distance = 0, num_ranks, 1
    while count > 1:
        count //= 2
        peer = rank ^ distance
        low, high = first, first + count
        kept, given = (high, low) if rank & distance else (low, high)
        halving.append((step(Op.SEND, given, count, peer), step(Op.RECV_REDUCE, kept, count, peer)))
        doubling.insert(0, (step(Op.SEND, kept, count, peer), step(Op.RECV, given, count, peer)))
        first, distance = kept, 2 * distance
    return halving + doubling


def _folded(core: Callable[[int, int, int], Program], num_ranks: int, num_elements: int, rank: int) -> Program:
    """Return a program for any number of ranks from one for powers of two.

    Of the first ranks, as many as are too many, each odd one leaves its part to the even one before it.
    """
    power = 1 << (num_ranks.bit_length() - 1)
    lent = 2 * (num_ranks - power)
    if rank < lent and rank % 2:
        return [(Step(op, 0, num_elements, rank - 1),) for op in (Op.SEND, Op.RECV)]
    speakers = [*range(0, lent, 2), *range(lent, num_ranks)]
    program = among(core(power, num_elements, speakers.index(rank)), speakers)
    if rank < lent:
        first, last = (Step(op, 0, num_elements, rank + 1) for op in (Op.RECV_REDUCE, Op.SEND))
        return [(first,), *program, (last,)]
    return program
