"""``hpdl bench step`` on the ranks of a job, with our own contenders."""

from __future__ import annotations

import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.bench.data_parallel import APART, ONE_RANK, SUMS, bench_data_parallel
from hpdl_mpi.parallel import node_memory

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize(("vs", "contenders"), [("shared-memory", {"private", "one-copy"}), ("watched", {"watched"})])
def test_contenders_of_our_own_take_the_same_steps(world, vs, contenders):
    result = bench_data_parallel(world, "lenet", 2, 1, vs, num_rounds=2, turn_seconds=0.0)
    assert set(result["vs"]) == {APART, ONE_RANK, SUMS} | contenders
    assert all(figures["step_seconds"] > 0 for figures in result["vs"].values())
    assert result["ratio"] is None


def test_memory_that_ranks_share_is_given_back(world, monkeypatch):
    arenas = []

    class Arena(node_memory.Arena):
        def __init__(self, comm):
            super().__init__(comm)
            arenas.append(self)

    monkeypatch.setattr(node_memory, "Arena", Arena)
    bench_data_parallel(world, "lenet", 2, 1, "shared-memory", num_rounds=2, turn_seconds=0.0)
    # Gradients of the step and of the one before it, of sums alone, and of one copy, which has parameters too.
    assert len(arenas) == (5 if world.size > 1 else 0)
    assert all(arena.window is None for arena in arenas)


def test_unknown_contender_is_refused(world):
    with pytest.raises(InputError, match="--vs: no contender on several ranks"):
        bench_data_parallel(world, "lenet", 2, 1, "horovod", num_rounds=2)
