"""A binomial tree, up and down."""

from __future__ import annotations

from hpdl_mpi.comm.schedule import Op, Program, Step


def tree_allreduce(num_ranks: int, num_elements: int, rank: int) -> Program:
    """Sum towards rank 0 along a binomial tree, then copy back along it.

    Each rank but the root sends its array once and receives the sum once: the fewest messages in all.
    """
    up: Program = []
    down: Program = []
    distance = 1
    while distance < num_ranks:
        if rank & distance:
            up.append((Step(Op.SEND, 0, num_elements, rank - distance),))
            down.append((Step(Op.RECV, 0, num_elements, rank - distance),))
            break
        if rank + distance < num_ranks:
            up.append((Step(Op.RECV_REDUCE, 0, num_elements, rank + distance),))
            down.append((Step(Op.SEND, 0, num_elements, rank + distance),))
        distance *= 2
    return up + down[::-1]
