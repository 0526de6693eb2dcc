"""``hpdl bench step`` on several ranks: what its contenders sum, and how."""

from __future__ import annotations

import pytest

from hpdl_mpi.bench.data_parallel import _Ranks, _Subject, _SumsAlone
from hpdl_mpi.comm import Communicator, run_threads

SUBJECT = _Subject("lenet", None)


def algorithms(comm: Communicator) -> list[list[str]]:
    """Return what sums gradients in our step, and alone."""
    found = []
    for player in (_Ranks(comm, SUBJECT, 1), _SumsAlone(comm, SUBJECT)):
        found.append(player.algorithms)
        player.free()
    return found


@pytest.mark.parametrize(("nodes", "shares"), [((0, 0), True), ((0, 1), False)], ids=["one machine", "two"])
def test_sums_alone_are_those_of_the_step(nodes: tuple[int, ...], shares: bool) -> None:
    for step, alone in run_threads(2, algorithms, nodes=nodes):
        assert alone == step
        assert ({*step} == {"window"}) is shares
