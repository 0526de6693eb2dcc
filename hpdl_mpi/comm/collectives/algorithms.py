"""The all-reduces by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from hpdl_mpi.comm.collectives.doubling import halving_doubling_allreduce, recursive_doubling_allreduce
from hpdl_mpi.comm.collectives.hierarchical import hierarchical_allreduce
from hpdl_mpi.comm.collectives.ring import bidirectional_ring_allreduce, ring_allreduce
from hpdl_mpi.comm.collectives.shared import one_shot_allreduce, two_shot_allreduce, window_allreduce
from hpdl_mpi.comm.collectives.tree import tree_allreduce
from hpdl_mpi.comm.schedule import Program


@dataclass(frozen=True)
class Algorithm:
    """An all-reduce.

    Attributes
    ----------
    programs : callable
        Takes the machine of each rank, the number of elements and a rank, and returns that rank's program.
    shares : bool
        Whether ranks of one machine share memory.
    one_machine : bool
        Whether all ranks must be on one machine.
    in_window : bool
        Whether the array itself lies in the window.
    """

    programs: Callable[[Sequence[int], int, int], Program]
    shares: bool = False
    one_machine: bool = False
    in_window: bool = False


LIBRARY = "library"
"""The name of the MPI library's own all-reduce, which has no program."""


def _anywhere(generate: Callable[[int, int, int], Program], **where: bool) -> Algorithm:
    """Return an algorithm that is the same wherever the ranks are."""
    return Algorithm(lambda nodes, num_elements, rank: generate(len(nodes), num_elements, rank), **where)


ALLREDUCES: dict[str, Algorithm] = {
    "ring": _anywhere(ring_allreduce),
    "bidirectional_ring": _anywhere(bidirectional_ring_allreduce),
    "recursive_doubling": _anywhere(recursive_doubling_allreduce),
    "halving_doubling": _anywhere(halving_doubling_allreduce),
    "tree": _anywhere(tree_allreduce),
    "one_shot": _anywhere(one_shot_allreduce, shares=True, one_machine=True),
    "two_shot": _anywhere(two_shot_allreduce, shares=True, one_machine=True),
    "window": _anywhere(window_allreduce, shares=True, one_machine=True, in_window=True),
    "hierarchical": Algorithm(hierarchical_allreduce, shares=True),
    "hierarchical_doubling": Algorithm(
        partial(hierarchical_allreduce, between=halving_doubling_allreduce), shares=True
    ),
}
