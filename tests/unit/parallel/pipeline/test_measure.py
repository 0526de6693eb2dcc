"""What is made of recorded spans: from spans that a simulation gives, the costs and times that it had."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpdl_mpi.base.trace import Span, Trace
from hpdl_mpi.parallel.pipeline import (
    Op,
    Schedule,
    StageCost,
    compare,
    complete,
    make_schedule,
    measured_costs,
    recorded,
    simulate,
    split_steps,
)
from tests.pipeline_cases import costs, schedules

UPDATE, OVERHEAD = 2.0, 0.5


def spans_of(schedule: Schedule, stage_costs: list[StageCost], start: float) -> list[list[Span]]:
    """Return what ranks would record that work, wait and update as simulated, with a little overhead at the end."""
    simulation = simulate(schedule, stage_costs)
    end = start + simulation.makespan
    spans = []
    for timings in simulation.timings:
        mine, free = [], start
        for timing in timings:
            begun, done = start + timing.start, start + timing.stop
            if begun > free:
                mine.append(Span("wait", "for something", free, begun))
            mine.append(Span("compute", str(timing.action), begun, done))
            free = done
        mine.append(Span("wait", "totals", free, end))
        mine.append(Span("update", "update", end, end + UPDATE))
        mine.append(Span("step", "step 1", start, end + UPDATE + OVERHEAD))
        spans.append(mine)
    return spans


@given(data=st.data(), schedule=schedules())
def test_times_are_those_of_the_simulation_that_the_spans_come_from(data: st.DataObject, schedule: Schedule) -> None:
    as_run = complete(schedule)
    size = schedule.num_stages
    stage_costs = [
        StageCost(cost.forward, cost.dgrad, cost.wgrad)
        for cost in data.draw(st.lists(costs, min_size=size, max_size=size))
    ]
    steps = [spans_of(as_run, stage_costs, start) for start in (5.0, 500.0)]
    by_rank = [[step[rank] for step in steps] for rank in range(schedule.num_ranks)]
    expected = simulate(as_run, stage_costs)
    times, predicted = compare(as_run, by_rank)
    assert predicted.makespan == pytest.approx(expected.makespan)
    assert times.predicted == pytest.approx(expected.makespan + UPDATE)
    assert times.step == pytest.approx(times.predicted + OVERHEAD)
    assert times.overhead == pytest.approx(OVERHEAD)
    assert times.update == UPDATE
    assert times.bubble_predicted == pytest.approx(expected.bubble_fraction(synchronized=True))
    assert times.bubble_measured == pytest.approx(times.wait / (expected.makespan + OVERHEAD))
    assert times.wait == pytest.approx(times.predicted_wait)
    real = recorded([mine[1] for mine in by_rank])
    for mine, others in zip(real.timings, expected.timings, strict=True):
        assert [timing.action for timing in mine] == [timing.action for timing in others]
        assert [timing.start for timing in mine] == pytest.approx([timing.start for timing in others], abs=1e-9)


def test_a_message_takes_what_a_rank_that_waits_already_waits_from_its_send_on() -> None:
    schedule = complete(make_schedule("1f1b", 2, 1))
    first = [
        Span("compute", "0F0", 0.0, 1.0),
        Span("send", "0SEND_F0", 1.0, 1.1),
        Span("wait", "0RECV_B0", 1.1, 5.25),
        Span("compute", "0B0", 5.25, 7.0),
        Span("step", "step 1", 0.0, 7.0),
    ]
    second = [
        Span("wait", "1RECV_F0", 0.0, 1.5),
        Span("compute", "1F0", 1.5, 3.0),
        Span("compute", "1I0", 3.0, 5.0),
        Span("send", "1SEND_B0", 5.0, 5.1),
        Span("compute", "1W0", 5.1, 6.0),
        Span("step", "step 1", 0.0, 7.0),
    ]
    cost = measured_costs(schedule, [[first], [second]])
    assert cost[0].message == pytest.approx((0.5 + 0.25) / 2)
    assert (cost[0].forward, cost[0].seconds(Op.B), cost[1].wgrad) == pytest.approx((1.0, 1.75, 0.9))


def test_spans_outside_of_whole_steps_are_left_out() -> None:
    trace = Trace()
    trace.spans = [
        Span("update", "late", 0.0, 1.0),
        Span("compute", "0F0", 2.0, 3.0),
        Span("step", "step 7", 2.0, 4.0),
        Span("compute", "0F0", 4.0, 5.0),
    ]
    (step,) = split_steps(trace.shifted(10.0))
    assert [(span.name, span.start, span.seconds) for span in step] == [("0F0", 12.0, 1.0), ("step 7", 12.0, 2.0)]
