"""The simulator agrees with the longest path through one graph of all actions."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpdl_mpi.comm.check import ScheduleError
from hpdl_mpi.parallel.pipeline import Schedule, StageCost, complete, make_schedule, simulate
from tests.pipeline_cases import costs, longest_path, node_of, schedules


@settings(deadline=None)
@given(schedule=schedules(), data=st.data())
def test_every_action_ends_when_the_longest_path_to_it_does(schedule: Schedule, data: st.DataObject) -> None:
    stage_costs = data.draw(st.lists(costs, min_size=schedule.num_stages, max_size=schedule.num_stages))
    found = {
        node_of(timing.action): timing.stop for timings in simulate(schedule, stage_costs).timings for timing in timings
    }
    assert found == longest_path(schedule, stage_costs)


@settings(deadline=None)
@given(schedule=schedules(), cost=costs, data=st.data())
def test_no_rank_does_two_things_at_once_or_less_than_its_work(
    schedule: Schedule, cost: StageCost, data: st.DataObject
) -> None:
    simulation = simulate(schedule, [cost] * schedule.num_stages)
    for timings in simulation.timings:
        assert all(one.stop <= other.start for one, other in pairwise(timings))
    for synchronized in (False, True):
        assert 0 <= simulation.bubble_fraction(synchronized=synchronized) < 1
    assert simulation.period <= simulation.makespan


@settings(deadline=None)
@given(schedule=schedules(), cost=costs)
def test_early_messages_never_cost_time(schedule: Schedule, cost: StageCost) -> None:
    stage_costs = [cost] * schedule.num_stages
    assert simulate(complete(schedule), stage_costs).makespan <= simulate(schedule, stage_costs).makespan


def test_both_halves_at_once_may_cost_less() -> None:
    cheaper = StageCost(backward=1.5)
    assert simulate(make_schedule("gpipe", 1, 4), [cheaper]).makespan == 4 * 2.5


def test_memory_is_counted_in_bytes_of_each_half() -> None:
    cost = StageCost(saved_bytes=10, deferred_bytes=4)
    assert simulate(make_schedule("zb-h1", 2, 4), [cost] * 2).peak_bytes == [20, 14]


def test_ranks_that_wait_for_ever_are_named() -> None:
    schedule = make_schedule("1f1b", 2, 1)
    swapped = schedule.with_programs([list(schedule.programs[0])[::-1], list(schedule.programs[1])])
    with pytest.raises(ScheduleError, match="rank 0 at 0B0, rank 1 at 1F0"):
        simulate(swapped)
