"""What sums cost, from spans that are known."""

from __future__ import annotations

import pytest

from hpdl_mpi.base.trace import Span
from hpdl_mpi.parallel.communication import measure_communication


def step(*spans: tuple[str, str, float, float]) -> list[Span]:
    return [Span(*span) for span in spans]


def test_what_is_hidden_and_what_is_late() -> None:
    """Rank 1 begins its second sum two seconds after rank 0, which waits for that, and then for the network."""
    prompt = step(
        ("reduce", "bucket 0", 1.0, 4.0),
        ("reduce", "bucket 1", 3.0, 7.0),
        ("wait", "totals", 2.0, 2.5),
        ("wait", "gradients", 3.5, 6.0),
        ("wait", "1F0", 0.0, 1.0),
        ("step", "step 1", 0.0, 8.0),
    )
    tardy = step(
        ("reduce", "bucket 0", 2.0, 4.0),
        ("reduce", "bucket 1", 5.0, 7.0),
        ("wait", "gradients", 5.0, 6.0),
        ("step", "step 1", 0.0, 8.0),
    )
    times = measure_communication([[prompt], [tardy]])
    assert times is not None
    assert times.under_way == pytest.approx((6 + 4) / 2)
    assert times.exposed == pytest.approx((3 + 1) / 2)
    assert times.late == pytest.approx((0.5 + 1.5 + 0) / 2)
    assert times.lateness == pytest.approx((0, (1 + 2) / 2))
    assert times.hidden == pytest.approx(1 - 2 / 5)


def test_steps_without_sums_have_none() -> None:
    assert measure_communication([[step(("step", "step 1", 0.0, 8.0))]]) is None
    assert measure_communication([[]]) is None


def test_figures_are_medians_over_steps() -> None:
    lengths = (1.0, 2.0, 9.0)
    mine = [step(("reduce", "bucket 0", 0.0, length), ("wait", "gradients", 0.0, length)) for length in lengths]
    times = measure_communication([mine])
    assert times is not None
    assert (times.under_way, times.exposed, times.late, times.hidden) == (2.0, 2.0, 0.0, 0.0)


def test_waits_for_parameters_count_and_gathers_hide_the_rest() -> None:
    """Rank 1 begins its gather a second later, which rank 0 waits for from 7 to 8."""
    early = step(
        ("reduce", "bucket 0", 1.0, 4.0),
        ("wait", "gradients", 3.0, 4.0),
        ("gather", "bucket 0", 5.0, 9.0),
        ("wait", "parameters", 7.0, 9.0),
    )
    later = step(
        ("reduce", "bucket 0", 1.0, 4.0),
        ("gather", "bucket 0", 8.0, 9.0),
        ("wait", "parameters", 8.5, 9.0),
    )
    times = measure_communication([[early], [later]])
    assert times is not None
    assert times.under_way == pytest.approx((7 + 4) / 2)
    assert times.exposed == pytest.approx((3 + 0.5) / 2)
    assert times.late == pytest.approx((1 + 0) / 2)
    assert times.lateness == (0, 0)
    assert times.hidden == pytest.approx(1 - 3.5 / 11)


def test_what_is_waited_for_is_under_way_though_it_has_no_bar() -> None:
    mine = step(("wait", "moments", 0.0, 2.0), ("reduce", "bucket 0", 3.0, 5.0), ("wait", "totals", 6.0, 7.0))
    times = measure_communication([[mine]])
    assert times is not None
    assert (times.under_way, times.exposed, times.hidden) == pytest.approx((5, 3, 2 / 5))
