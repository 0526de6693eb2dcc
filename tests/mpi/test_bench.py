"""``hpdl bench step`` on the ranks of a job, with our own contenders."""

from __future__ import annotations

import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.bench.data_parallel import APART, ONE_RANK, SUMS, bench_data_parallel

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize(("vs", "contenders"), [("shared-memory", {"private", "one-copy"}), ("watched", {"watched"})])
def test_contenders_of_our_own_take_the_same_steps(world, vs, contenders):
    result = bench_data_parallel(world, "lenet", 2, 1, vs, num_rounds=2, turn_seconds=0.0)
    assert set(result["vs"]) == {APART, ONE_RANK, SUMS} | contenders
    assert all(figures["step_seconds"] > 0 for figures in result["vs"].values())
    assert result["ratio"] is None


def test_unknown_contender_is_refused(world):
    with pytest.raises(InputError, match="--vs: no contender on several ranks"):
        bench_data_parallel(world, "lenet", 2, 1, "horovod", num_rounds=2)
