"""The checker passes the collectives, and no damaged one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hpdl_mpi.comm.check import ScheduleError, check_all_gather, check_allreduce, check_reduce_scatter
from hpdl_mpi.comm.collectives import (
    bidirectional_ring_allreduce,
    halving_doubling_allreduce,
    recursive_doubling_allreduce,
    ring_all_gather,
    ring_allreduce,
    ring_reduce_scatter,
    tree_allreduce,
)
from hpdl_mpi.comm.schedule import Op, Program, Round, Step
from tests.collective_cases import lengths

Generator = Callable[[int, int, int], Program]
Check = Callable[[list[Program], int], None]

COLLECTIVES: list[tuple[Generator, Check]] = [
    (ring_allreduce, check_allreduce),
    (bidirectional_ring_allreduce, check_allreduce),
    (recursive_doubling_allreduce, check_allreduce),
    (halving_doubling_allreduce, check_allreduce),
    (tree_allreduce, check_allreduce),
    (ring_reduce_scatter, check_reduce_scatter),
    (ring_all_gather, check_all_gather),
]


def programs_of(generate: Generator, num_ranks: int, num_elements: int) -> list[Program]:
    return [generate(num_ranks, num_elements, rank) for rank in range(num_ranks)]


@pytest.mark.parametrize(("generate", "check"), COLLECTIVES, ids=lambda function: function.__name__)
@pytest.mark.parametrize("num_ranks", range(1, 10))
def test_collectives_are_right_for_every_world_and_length(generate: Generator, check: Check, num_ranks: int) -> None:
    for num_elements in [*lengths(num_ranks), 2**40]:
        check(programs_of(generate, num_ranks, num_elements), num_elements)


@pytest.mark.parametrize(
    ("generate", "num_ranks", "num_rounds", "times"),
    [
        (ring_allreduce, 5, 8, 1.6),
        (bidirectional_ring_allreduce, 5, 8, 1.6),
        (halving_doubling_allreduce, 8, 6, 1.75),
        (halving_doubling_allreduce, 5, 6, 2.5),  # the rank that a neighbour lends its array to
        (recursive_doubling_allreduce, 8, 3, 3.0),
        (tree_allreduce, 8, 6, 3.0),
    ],
)
def test_collective_takes_as_many_rounds_and_as_much_traffic_as_it_promises(
    generate: Generator, num_ranks: int, num_rounds: int, times: float
) -> None:
    programs = programs_of(generate, num_ranks, 1000)
    sent = [sum(step.size for steps in program for step in steps if step.op is Op.SEND) for program in programs]
    assert max(map(len, programs)) == num_rounds
    assert max(sent) == times * 1000


def drop_step(program: Program, index: int, number: int) -> Program:
    steps = program[index]
    return [*program[:index], steps[:number] + steps[number + 1 :], *program[index + 1 :]]


def double_step(program: Program, index: int, number: int) -> Program:
    return [*program[: index + 1], (program[index][number],), *program[index + 1 :]]


def double_step_in_its_round(program: Program, index: int, number: int) -> Program:
    return [*program[:index], (*program[index], program[index][number]), *program[index + 1 :]]


def drop_round(program: Program, index: int, number: int) -> Program:
    return program[:index] + program[index + 1 :]


def swap_with_next_round(program: Program, index: int, number: int) -> Program:
    assume(index + 1 < len(program))
    return [*program[:index], program[index + 1], program[index], *program[index + 2 :]]


def change(field: str, amount: int) -> Callable[[Program, int, int], Program]:
    def change_step(program: Program, index: int, number: int) -> Program:
        steps = list(program[index])
        steps[number] = replace(steps[number], **{field: getattr(steps[number], field) + amount})
        return [*program[:index], tuple(steps), *program[index + 1 :]]

    return change_step


def change_op(program: Program, index: int, number: int) -> Program:
    following = {Op.SEND: Op.RECV, Op.RECV: Op.RECV_REDUCE, Op.RECV_REDUCE: Op.RECV}
    steps = list(program[index])
    steps[number] = replace(steps[number], op=following[steps[number].op])
    return [*program[:index], tuple(steps), *program[index + 1 :]]


DAMAGES = [
    drop_step,
    double_step,
    double_step_in_its_round,
    drop_round,
    swap_with_next_round,
    change_op,
    *(change(field, amount) for field in ("start", "stop", "peer") for amount in (-1, 1)),
]


def effect(program: Program) -> list[set[tuple]]:
    """Return what a program does: steps of a round have no order, and an empty receive is as good as an empty sum."""
    empty = {Op.SEND: Op.SEND, Op.RECV: Op.RECV, Op.RECV_REDUCE: Op.RECV}

    def facts(step: Step) -> tuple:
        nothing = step.start == step.stop
        return empty[step.op] if nothing else step.op, step.start, step.stop, step.peer

    return [{facts(step) for step in steps} for steps in program]


@given(
    st.sampled_from(COLLECTIVES),
    st.integers(2, 9),
    st.sampled_from(DAMAGES),
    st.data(),
)
def test_damaged_collective_is_always_caught(
    collective: tuple[Generator, Check], num_ranks: int, damage: Callable, data: st.DataObject
) -> None:
    generate, check = collective
    num_elements = data.draw(st.sampled_from([*lengths(num_ranks), 2**40]))
    programs = programs_of(generate, num_ranks, num_elements)
    rank = data.draw(st.integers(0, num_ranks - 1))
    index = data.draw(st.integers(0, len(programs[rank]) - 1))
    number = data.draw(st.integers(0, len(programs[rank][index]) - 1))
    damaged = [*programs[:rank], damage(programs[rank], index, number), *programs[rank + 1 :]]
    same = len(damaged[rank]) == len(programs[rank]) and effect(damaged[rank]) == effect(programs[rank])
    assume(not same or damage is double_step_in_its_round)
    with pytest.raises(ScheduleError):
        check(damaged, num_elements)


def send(start: int, stop: int, peer: int) -> Round:
    return (Step(Op.SEND, start, stop, peer),)


def recv(start: int, stop: int, peer: int) -> Round:
    return (Step(Op.RECV, start, stop, peer),)


def add(start: int, stop: int, peer: int) -> Round:
    return (Step(Op.RECV_REDUCE, start, stop, peer),)


@pytest.mark.parametrize(
    ("programs", "complaint"),
    [
        (
            # Right wherever sends are buffered, so this hangs only with long messages.
            [[send(0, 4, 1), add(0, 4, 1)], [send(0, 4, 0), add(0, 4, 0)]],
            r"nobody answers: rank 0, round 0: send \[0, 4\) to rank 1; rank 1, round 0: send \[0, 4\) to rank 0",
        ),
        (
            [[send(0, 4, 1) + recv(0, 4, 1)], [send(0, 4, 0) + recv(0, 4, 0)]],
            r"rank 0, round 0: send \[0, 4\) to rank 1 races with recv \[0, 4\) from rank 1",
        ),
        (
            [[send(0, 4, 1) + add(0, 2, 1)], [send(0, 2, 0) + add(0, 4, 0)]],
            r"rank 0, round 0: send \[0, 4\) to rank 1 races with recv_reduce \[0, 2\) from rank 1",
        ),
        (
            [[send(0, 4, 1)], [add(0, 3, 0)]],
            r"rank 0, round 0: send \[0, 4\) to rank 1 meets rank 1, round 0: recv_reduce \[0, 3\) from rank 0",
        ),
        (
            [[send(0, 4, 1)], [add(0, 4, 0)]],
            r"rank 0 ends with rank 1's contribution to \[0, 2\) 0 times, expected 1; no step writes there",
        ),
        (
            [[send(0, 4, 1), add(0, 4, 1)], [add(0, 4, 0), send(0, 4, 0)]],
            r"rank 0 ends with rank 0's contribution to \[0, 2\) 2 times, expected 1; last written in round 1: recv_re",
        ),
        ([[send(0, 5, 1)], [recv(0, 5, 0)]], r"rank 0, round 0: send \[0, 5\) to rank 1 leaves the array of 4 elem"),
        ([[send(0, 4, 2)], []], r"rank 0, round 0: send \[0, 4\) to rank 2 has no such peer among 2 ranks"),
        ([[send(0, 4, 0)], []], "has no such peer"),
    ],
)
def test_complaint_names_rank_round_and_step(programs: list[Program], complaint: str) -> None:
    with pytest.raises(ScheduleError, match=complaint):
        check_allreduce(programs, 4)


def test_tree_of_unequal_programs_passes() -> None:
    programs = [[add(0, 4, 1), send(0, 4, 1)], [send(0, 4, 0), recv(0, 4, 0)]]
    check_allreduce(programs, 4)
