"""What collectives take on paper, against the formulas of the literature (Thakur et al., 2005)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hpdl_mpi.comm.check import ScheduleError
from hpdl_mpi.comm.collectives import (
    ALLREDUCES,
    bidirectional_ring_allreduce,
    halving_doubling_allreduce,
    recursive_doubling_allreduce,
    ring_allreduce,
    tree_allreduce,
)
from hpdl_mpi.comm.predict import Costs, predict
from hpdl_mpi.comm.schedule import Op, Program, Step

SIZE = 8 * 1000
"""Elements: a multiple of all numbers of ranks here."""

COSTS = Costs(latency=3.0, bandwidth=10.0, reduction=0.5, copy=0.25, signal=2.0)
ITEMSIZE = 4
BYTES = SIZE * ITEMSIZE


@pytest.mark.parametrize("num_ranks", [2, 4, 8])
@pytest.mark.parametrize(
    ("generate", "latencies", "transfers", "reductions"),
    [
        (ring_allreduce, lambda p: 2 * (p - 1), lambda p: 2 * (p - 1) / p, lambda p: (p - 1) / p),
        # Both ways at once share the link on which a rank sends.
        (bidirectional_ring_allreduce, lambda p: 2 * (p - 1), lambda p: 2 * (p - 1) / p, None),
        (
            halving_doubling_allreduce,
            lambda p: 2 * p.bit_length() - 2,
            lambda p: 2 * (p - 1) / p,
            lambda p: (p - 1) / p,
        ),
        (recursive_doubling_allreduce, *[lambda p: p.bit_length() - 1] * 3),
        (tree_allreduce, *[lambda p: 2 * p.bit_length() - 2] * 2, lambda p: p.bit_length() - 1),
    ],
)
def test_messages_take_what_the_formula_says(
    generate: Callable[[int, int, int], Program],
    num_ranks: int,
    latencies: Callable[[int], float],
    transfers: Callable[[int], float],
    reductions: Callable[[int], float] | None,
) -> None:
    programs = [generate(num_ranks, SIZE, rank) for rank in range(num_ranks)]
    costs = COSTS if reductions else Costs(latency=3.0, bandwidth=10.0, reduction=0.0)
    added = reductions(num_ranks) * BYTES * 0.5 if reductions else 0.0
    expected = latencies(num_ranks) * 3.0 + transfers(num_ranks) * BYTES / 10.0 + added
    assert predict(programs, ITEMSIZE, costs) == pytest.approx(expected)


def test_shared_memory_takes_copies_sums_and_signals() -> None:
    programs = [ALLREDUCES["one_shot"].programs([0, 0], SIZE, rank) for rank in range(2)]
    # Show, see the other's signal, read the first array, add the second.
    assert predict(programs, ITEMSIZE, COSTS) == pytest.approx(BYTES * (0.25 + 0.25 + 0.5) + 2.0)


def test_one_rank_takes_no_time() -> None:
    for algorithm in ALLREDUCES.values():
        assert predict([algorithm.programs([0], SIZE, 0)], ITEMSIZE, COSTS) == 0.0


def test_programs_that_wait_for_ever_take_no_finite_time() -> None:
    with pytest.raises(ScheduleError, match="wait for one another"):
        predict([[(Step(Op.SEND, 0, 1, 1),)], []], ITEMSIZE, COSTS)
