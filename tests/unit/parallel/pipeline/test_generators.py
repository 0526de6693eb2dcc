"""Every schedule is legal for all sizes, and has the bubble and the memory that was published."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.parallel.pipeline import FAMILIES, Op, check, complete, forward_only, make_schedule, simulate
from hpdl_mpi.parallel.pipeline.action import loop_placement, v_placement
from tests.pipeline_cases import NAMES

RANKS = range(1, 7)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_ranks", RANKS)
def test_every_number_of_microbatches_has_a_legal_schedule(name: str, num_ranks: int) -> None:
    for num_microbatches in range(1, 2 * num_ranks + 3):
        for num_chunks in (2, 3) if name == "interleaved" else (None,):
            schedule = make_schedule(name, num_ranks, num_microbatches, num_chunks)
            check(schedule, complete=False)
            check(complete(schedule), complete=True)


@pytest.mark.parametrize("num_ranks", RANKS)
@pytest.mark.parametrize("placement", [lambda p: loop_placement(p, 2), v_placement], ids=["loop", "v"])
def test_forward_alone_is_legal(num_ranks, placement) -> None:
    schedule = forward_only(placement(num_ranks), 3)
    check(schedule, complete=False)
    check(complete(schedule), complete=True)
    assert {action.op for action in schedule.actions()} == {Op.F}


@pytest.mark.parametrize(("num_ranks", "num_chunks"), [(1, 1), (4, 1), (4, 2), (5, 3)])
def test_forward_alone_is_as_short_as_can_be(num_ranks: int, num_chunks: int) -> None:
    m = 3 * num_ranks
    around = forward_only(loop_placement(num_ranks, num_chunks), m)
    assert simulate(around).makespan == m * num_chunks + num_ranks - 1
    there_and_back = forward_only(v_placement(num_ranks), m)
    assert simulate(there_and_back).makespan == 2 * m + 2 * num_ranks - 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_ranks", RANKS)
def test_bubbles_are_those_published(name: str, num_ranks: int) -> None:
    for rounds in (2, 3, 5):
        num_microbatches = rounds * num_ranks
        schedule = make_schedule(name, num_ranks, num_microbatches)
        num_chunks = schedule.num_stages // num_ranks
        expected = FAMILIES[name].bubble(num_ranks, num_microbatches, num_chunks)
        assert simulate(schedule).bubble_fraction() == pytest.approx(float(expected), abs=1e-12)


def test_interleaving_divides_the_bubble() -> None:
    p, m = 4, 8
    bubble = simulate(make_schedule("1f1b", p, m)).makespan - 3 * m
    for chunks in (2, 4, 8):
        # the time of a stage is the unit, and a rank has `chunks` of them
        assert (simulate(make_schedule("interleaved", p, m, chunks)).makespan / chunks - 3 * m) == bubble / chunks


@pytest.mark.parametrize(("name", "chunks"), [("zb-h2", 1), ("zb-v", 2)])
def test_a_global_synchronization_costs_zero_bubble_schedules_their_stagger(name: str, chunks: int) -> None:
    p, m = 4, 9
    simulation = simulate(make_schedule(name, p, m))
    assert simulation.period == 3 * m * chunks
    assert simulation.makespan == 3 * m * chunks + p - 1
    assert simulation.bubble_fraction() == 0
    assert simulation.bubble_fraction(synchronized=True) == pytest.approx((p - 1) / (3 * m * chunks + p - 1))


@pytest.mark.parametrize("num_ranks", RANKS)
def test_activations_held_are_those_published(num_ranks: int) -> None:
    p, m = num_ranks, 3 * num_ranks
    peaks = {name: simulate(make_schedule(name, p, m)).peak_bytes for name in NAMES}
    assert peaks["gpipe"] == [m] * p
    assert peaks["1f1b"] == [p - rank for rank in range(p)]
    assert max(peaks["zb-h1"]) == p
    assert max(peaks["zb-h2"]) == 2 * p - 1
    assert max(peaks["zb-v"]) == 2 * p  # of stages half as large


def test_dx_leaves_before_dw_is_computed() -> None:
    schedule = complete(make_schedule("1f1b", 3, 4))
    for rank, program in enumerate(schedule.programs):
        for action, following in pairwise(program):
            if action.op is Op.I:
                assert following.op is Op.SEND_B
        # nobody waits for the gradient of the samples
        assert any(action.op is Op.B for action in program) == (rank == 0)
    assert simulate(schedule).makespan < simulate(make_schedule("1f1b", 3, 4)).makespan


def test_gradients_are_reduced_when_they_are_whole() -> None:
    program = complete(make_schedule("zb-v", 2, 4)).programs[0]
    kinds = [str(action) for action in program]
    assert kinds.index("3REDUCE") == kinds.index("3W3") + 1
    assert kinds.index("0REDUCE") == len(kinds) - 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("2f2b", 2, 4), "parallel.schedule: no such schedule. Found '2f2b'; expected gpipe, 1f1b,"),
        (("1f1b", 2, 4, 2), "parallel.num_chunks: stages on each rank of 1f1b. Found 2; expected 1."),
        (("interleaved", 2, 4, 1), "expected 2 to"),
        (("1f1b", 0, 4), "parallel.pp: out of range. Found 0; expected at least 1."),
        (("1f1b", 2, 0), "parallel.num_microbatches: out of range."),
    ],
)
def test_what_cannot_be_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        make_schedule(*arguments)


def test_published_fractions_are_fractions() -> None:
    assert FAMILIES["zb-h1"].bubble(4, 8, 1) == Fraction(1, 9)
