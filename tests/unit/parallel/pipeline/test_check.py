"""The checker passes no damaged schedule."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hpdl_mpi.comm.check import ScheduleError
from hpdl_mpi.parallel.pipeline import Action, Op, Schedule, check, complete, make_schedule
from tests.pipeline_cases import can_run, schedules


def damaged(schedule: Schedule, rank: int, program: list[Action]) -> Schedule:
    return schedule.with_programs([list(p) if r != rank else program for r, p in enumerate(schedule.programs)])


def draw_program(schedule: Schedule, data: st.DataObject) -> tuple[int, list[Action]]:
    """Return any rank, and a copy of its program."""
    rank = data.draw(st.integers(0, schedule.num_ranks - 1))
    return rank, list(schedule.programs[rank])


@settings(deadline=None)
@given(schedule=schedules(), data=st.data())
def test_an_action_dropped_is_found(schedule: Schedule, data: st.DataObject) -> None:
    schedule = complete(schedule)
    rank, program = draw_program(schedule, data)
    del program[data.draw(st.integers(0, len(program) - 1))]
    with pytest.raises(ScheduleError):
        check(damaged(schedule, rank, program), complete=True)


@settings(deadline=None)
@given(schedule=schedules(), data=st.data())
def test_an_action_doubled_is_found(schedule: Schedule, data: st.DataObject) -> None:
    schedule = complete(schedule)
    rank, program = draw_program(schedule, data)
    again = data.draw(st.sampled_from(program))
    program.insert(data.draw(st.integers(0, len(program))), again)
    with pytest.raises(ScheduleError):
        check(damaged(schedule, rank, program), complete=True)


@settings(deadline=None, max_examples=300)
@given(schedule=schedules(), with_messages=st.booleans(), data=st.data())
def test_two_actions_swapped_are_found_unless_the_order_is_as_good(
    schedule: Schedule, with_messages: bool, data: st.DataObject
) -> None:
    schedule = complete(schedule) if with_messages else schedule
    rank, program = draw_program(schedule, data)
    first, second = sorted(data.draw(st.integers(0, len(program) - 1)) for _ in range(2))
    assume(first != second)
    program[first], program[second] = program[second], program[first]
    swapped = damaged(schedule, rank, program)
    if can_run(swapped):
        check(swapped, complete=with_messages)
    else:
        with pytest.raises(ScheduleError):
            check(swapped, complete=with_messages)


@settings(deadline=None)
@given(schedule=schedules(), data=st.data())
def test_microbatches_out_of_order_are_found(schedule: Schedule, data: st.DataObject) -> None:
    rank, program = draw_program(schedule, data)
    first = data.draw(st.integers(0, len(program) - 1))
    alike = [
        k for k, a in enumerate(program) if (a.op, a.stage) == (program[first].op, program[first].stage) and k != first
    ]
    assume(alike)
    second = data.draw(st.sampled_from(alike))
    program[first], program[second] = program[second], program[first]
    with pytest.raises(ScheduleError, match="in order"):
        check(damaged(schedule, rank, program), complete=False)


def test_an_action_on_another_rank_is_found() -> None:
    schedule = make_schedule("1f1b", 2, 2)
    stranger = Action(Op.F, 1, 0)
    with pytest.raises(ScheduleError, match="rank 0: 1F0 belongs to rank 1, which has stage 1"):
        check(damaged(schedule, 0, [stranger, *schedule.programs[0]]), complete=False)


@pytest.mark.parametrize("action", [Action(Op.F, 2, 0), Action(Op.F, 0, 2), Action(Op.REDUCE, 0, 1)])
def test_numbers_that_are_not_there_are_found(action: Action) -> None:
    schedule = make_schedule("1f1b", 2, 2)
    with pytest.raises(ScheduleError, match="is not there"):
        check(damaged(schedule, 0, [*schedule.programs[0], action]), complete=False)


def test_sends_that_wait_for_each_other_are_found_with_where_each_rank_is() -> None:
    crossing = complete(make_schedule("1f1b", 2, 3))
    programs = [list(program) for program in crossing.programs]
    # both ranks send before they receive: fine with buffers, and a deadlock where a send waits for its receive
    for program, send, receive in ((programs[0], "0SEND_F1", "0RECV_B0"), (programs[1], "1SEND_B0", "1RECV_F1")):
        names = [str(action) for action in program]
        one, other = sorted((names.index(send), names.index(receive)))
        program[one : other + 1] = sorted(program[one : other + 1], key=lambda action: "RECV" in action.op)
    with pytest.raises(ScheduleError, match=re.escape("wait for one another for ever: rank 0 at ")):
        check(crossing.with_programs(programs), complete=True)


def test_a_message_to_nowhere_and_one_that_nobody_needs_are_found() -> None:
    schedule = complete(make_schedule("zb-v", 1, 1))
    with pytest.raises(ScheduleError, match="has no other rank to go to"):
        check(damaged(schedule, 0, [*schedule.programs[0], Action(Op.SEND_F, 0, 0)]), complete=True)
    forward = make_schedule("1f1b", 2, 1)
    extra = [
        [Action(Op.F, 0, 0), Action(Op.SEND_F, 0, 0)],
        [Action(Op.RECV_F, 1, 0), Action(Op.F, 1, 0)],
    ]
    check(forward.with_programs(extra), complete=True)
