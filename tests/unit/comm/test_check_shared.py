"""The checker passes collectives in shared memory, and none that races, waits for ever or leaves signals behind."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hpdl_mpi.base.shares import share
from hpdl_mpi.comm.check import ScheduleError, check_all_gather, check_allreduce, check_reduce_scatter
from hpdl_mpi.comm.collectives import (
    halving_doubling_allreduce,
    hierarchical_allreduce,
    hierarchical_window_gather,
    hierarchical_window_reduce,
    machine_barrier,
    one_shot_allreduce,
    shared,
    two_shot_allreduce,
    window_allreduce,
)
from hpdl_mpi.comm.schedule import Op, Program, Step
from tests.collective_cases import lengths

PIECE = 7
"""Short, so that there are many turns."""

SHARED = {
    "one_shot": one_shot_allreduce,
    "two_shot": partial(two_shot_allreduce, piece=PIECE),
    "window": partial(window_allreduce, piece=PIECE),
}


def programs_of(name: str, num_ranks: int, num_elements: int) -> list[Program]:
    return [SHARED[name](num_ranks, num_elements, rank) for rank in range(num_ranks)]


def check(name: str, programs: list[Program], num_elements: int) -> None:
    check_allreduce(programs, num_elements, in_window=name == "window")


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("num_ranks", range(1, 10))
def test_collectives_are_right_for_every_world_and_length(name: str, num_ranks: int) -> None:
    for num_elements in lengths(num_ranks):
        check(name, programs_of(name, num_ranks, num_elements), num_elements)


@pytest.mark.parametrize("num_ranks", range(1, 6))
@pytest.mark.parametrize("num_elements", [0, 1, 5, 200])
def test_halves_of_the_exchange_scatter_and_gather(num_ranks: int, num_elements: int) -> None:
    ranks = range(num_ranks)
    for check_half, half in ((check_reduce_scatter, {"gathers": False}), (check_all_gather, {"reduces": False})):
        programs = [shared.exchange(ranks, num_ranks, num_elements, rank, PIECE, **half) for rank in ranks]
        check_half(programs, num_elements)


@pytest.mark.parametrize(
    "nodes",
    [[0], [0, 0], [0, 1], [0, 1, 2], [0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1, 1], [2, 2, 2, 7, 7, 7, 1]],
)
@pytest.mark.parametrize("num_elements", [0, 1, 5, 300])
def test_hierarchy_is_right_for_even_and_uneven_machines(nodes: list[int], num_elements: int) -> None:
    for between in ({}, {"between": halving_doubling_allreduce}):
        programs = [hierarchical_allreduce(nodes, num_elements, rank, PIECE, **between) for rank in range(len(nodes))]
        check_allreduce(programs, num_elements)


@pytest.mark.parametrize("nodes", [[0], [0, 0, 0], [0, 1, 2], [0, 0, 1, 1], [0, 1, 0, 1], [2, 2, 2, 7, 7, 7]])
@pytest.mark.parametrize("num_elements", [0, 1, 5, 300])
def test_halves_in_windows_make_a_whole_on_even_machines(nodes: list[int], num_elements: int) -> None:
    programs = [
        hierarchical_window_reduce(nodes, num_elements, rank, PIECE)
        + hierarchical_window_gather(nodes, num_elements, rank, PIECE)
        for rank in range(len(nodes))
    ]
    check_allreduce(programs, num_elements, in_window=True)


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
@pytest.mark.parametrize("num_elements", [5, 300])
def test_what_a_rank_zeroes_nobody_reads_after_the_barrier(num_ranks: int, num_elements: int) -> None:
    nodes = [0] * num_ranks

    def programs(barrier: bool) -> list[Program]:
        """Sum, and then write over all that the rank has of the others' chunks."""
        made = []
        for rank in range(num_ranks):
            program = hierarchical_window_reduce(nodes, num_elements, rank, PIECE)
            program += machine_barrier(nodes, num_elements, rank) if barrier else []
            first, last = share(num_elements, rank, num_ranks)
            zeroed = [(0, first), (last, num_elements)]
            steps = [Step(Op.READ, start, stop, rank, start) for start, stop in zeroed if start < stop]
            made.append([*program, tuple(steps)])
        return made

    check_reduce_scatter(programs(barrier=True), num_elements, in_window=True)
    with pytest.raises(ScheduleError, match="races with rank"):
        check_reduce_scatter(programs(barrier=False), num_elements, in_window=True)


def test_fewer_slots_would_be_written_while_others_read(monkeypatch: pytest.MonkeyPatch) -> None:
    check("two_shot", programs_of("two_shot", 3, 300), 300)
    monkeypatch.setattr(shared, "_SLOTS", shared._SLOTS - 1)
    with pytest.raises(ScheduleError, match="races with rank"):
        check("two_shot", programs_of("two_shot", 3, 300), 300)


def flat(program: Program) -> list[Step]:
    return [step for steps in program for step in steps]


@given(st.sampled_from(sorted(SHARED)), st.integers(2, 5), st.sampled_from([1, 5, 90]), st.data())
def test_step_left_out_or_done_twice_is_caught(
    name: str, num_ranks: int, num_elements: int, data: st.DataObject
) -> None:
    programs = programs_of(name, num_ranks, num_elements)
    rank = data.draw(st.integers(0, num_ranks - 1))
    steps = flat(programs[rank])
    index = data.draw(st.integers(0, len(steps) - 1))
    step = steps[index]
    twice = data.draw(st.booleans())
    harmless = (Op.COPY, Op.READ, Op.WRITE) if twice else ()
    assume(step.op in (Op.SIGNAL, Op.WAIT) or (step.size and step.op not in harmless))
    damaged = steps[:index] + [step] * (2 if twice else 0) + steps[index + 1 :]
    with pytest.raises(ScheduleError):
        check(name, [*programs[:rank], [tuple(damaged)], *programs[rank + 1 :]], num_elements)


@given(st.sampled_from(sorted(SHARED)), st.integers(2, 5), st.data())
def test_look_before_the_signal_is_caught(name: str, num_ranks: int, data: st.DataObject) -> None:
    programs = programs_of(name, num_ranks, 90)
    rank = data.draw(st.integers(0, num_ranks - 1))
    steps = flat(programs[rank])
    waits = [
        index
        for index, (one, other) in enumerate(pairwise(steps))
        if one.op is Op.WAIT and other.op in (Op.READ, Op.READ_REDUCE) and other.peer == one.peer and other.size
    ]
    assume(waits)
    index = data.draw(st.sampled_from(waits))
    steps[index : index + 2] = steps[index + 1], steps[index]
    with pytest.raises(ScheduleError):
        check(name, [*programs[:rank], [tuple(steps)], *programs[rank + 1 :]], 90)


def test_complaints_say_who_races_with_whom() -> None:
    show = (Step(Op.COPY, 0, 4, 0),)
    signal, wait = Step(Op.SIGNAL, 0, 0, 0), Step(Op.WAIT, 0, 0, 1)
    look = (Step(Op.READ, 0, 4, 0, 0), signal)
    with pytest.raises(
        ScheduleError, match=r"rank 1, round 0: read \[0, 4\) from rank 0's window at 0 races with rank 0"
    ):
        check_allreduce([[(*show, wait)], [look]], 4)
    with pytest.raises(
        ScheduleError, match=r"nobody answers: rank 0, round 0: wait for rank 1; rank 1, round 0: wait for rank 0"
    ):
        check_allreduce([[(wait,)], [(Step(Op.WAIT, 0, 0, 0),)]], 4)
    with pytest.raises(ScheduleError, match="mixes messages and shared memory"):
        check_allreduce([[(*show, Step(Op.SEND, 0, 4, 1))], []], 4)
    with pytest.raises(ScheduleError, match="is elsewhere than in the array"):
        check_allreduce([[(Step(Op.WRITE, 0, 2, 1, 2),)], []], 4, in_window=True)
