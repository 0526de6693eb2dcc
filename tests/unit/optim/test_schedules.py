"""Learning-rate schedules against their naive twins."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.optim import SCHEDULES, Constant, Cosine, InverseSquareRoot, Schedule, Step
from tests import reference as ref

NUM_STEPS = 23


@pytest.mark.parametrize("warmup_steps", [0, 1, 5])
@pytest.mark.parametrize(
    ("name", "settings"),
    [("constant", {}), ("step", {"every": 4, "gamma": 0.5}), ("cosine", {"final": 0.1}), ("inverse_sqrt", {})],
)
def test_factors_are_those_of_the_naive_twin(name: str, settings: dict, warmup_steps: int) -> None:
    schedule = SCHEDULES[name](warmup_steps=warmup_steps, **settings)
    for step in range(NUM_STEPS):
        expected = ref.warmed_up(step, NUM_STEPS, warmup_steps, name, **settings)
        assert schedule.factor(step, NUM_STEPS) == pytest.approx(expected, rel=1e-15)


def test_warmup_rises_to_the_whole_rate_and_stays_above_zero() -> None:
    assert [Constant(warmup_steps=4).factor(step, 9) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_cosine_falls_from_one_to_its_end_and_stays_there() -> None:
    schedule = Cosine(final=0.2)
    factors = [schedule.factor(step, 10) for step in range(13)]
    assert factors[0] == 1.0
    assert factors[10:] == [pytest.approx(0.2)] * 3
    assert factors == sorted(factors, reverse=True)


def test_step_falls_after_every_so_many_steps() -> None:
    assert [Step(every=2, gamma=0.5).factor(step, 6) for step in range(6)] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def test_inverse_square_root_is_the_rate_of_the_paper() -> None:
    width, warmup, schedule = 512, 4000, InverseSquareRoot(warmup_steps=4000)
    for step in (1, 10, 3999, 4000, 4001, 100_000):
        expected = width**-0.5 * min(step**-0.5, step * warmup**-1.5)
        assert (width * warmup) ** -0.5 * schedule.factor(step - 1, 100_000) == pytest.approx(expected, rel=1e-14)


def test_warmup_may_be_all_there_is() -> None:
    for schedule in (Constant(warmup_steps=5), Cosine(warmup_steps=5), Step(every=1, warmup_steps=5)):
        assert [schedule.factor(step, 3) for step in range(6)] == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Constant(warmup_steps=-1),
            "lr_schedule.warmup_steps: out of range. Found -1; expected an integer of at least 0.",
        ),
        (lambda: Step(every=0), "lr_schedule.every: out of range. Found 0; expected an integer of at least 1."),
        (lambda: Step(every=1, gamma=0.0), "lr_schedule.gamma: out of range. Found 0.0; expected a number above 0."),
        (
            lambda: Step(every=1, gamma=math.nan),
            "lr_schedule.gamma: out of range. Found nan; expected a number above 0.",
        ),
        (lambda: Cosine(final=1.5), "lr_schedule.final: out of range. Found 1.5; expected 0 to 1."),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], Schedule], message: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value) == message


def test_rate_grows_with_the_batch() -> None:
    assert Constant(base_batch_size=256).scale(1024) == 4.0
    assert Cosine(base_batch_size=256).scale(64) == 0.25
    assert Step(every=1).scale(1024) == 1.0
    with pytest.raises(InputError, match=r"lr_schedule\.base_batch_size: out of range\. Found 0"):
        Constant(base_batch_size=0)
