"""Rounds: every contender takes a turn in each, so that what disturbs the machine disturbs them all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from hpdl_mpi.base.errors import require
from hpdl_mpi.bench.contender import Contender

T = TypeVar("T")

_PAUSE_SECONDS = 0.05
"""Between turns: thread pools spin for some milliseconds before they go to sleep."""


@dataclass
class Turns:
    """The turns of a contender.

    Attributes
    ----------
    steps : int
        Steps of a turn.
    step_seconds : list of float
        The mean step of each turn, in order.
    peak_bytes : int
        The most memory that it held, above the level after its imports.
    """

    steps: int
    step_seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0


def require_rounds(num_rounds: int) -> None:
    """Raise an `InputError` if there are no rounds."""
    require("--rounds", num_rounds, num_rounds >= 1, "at least 1")


def turn_order(contenders: Sequence[T], round_number: int) -> list[T]:
    """Return who plays when: every other round goes backwards, so that a steady drift favours nobody."""
    return list(contenders if round_number % 2 == 0 else reversed(contenders))


def play(
    contenders: Sequence[Contender], num_rounds: int, turn_seconds: float, say: Callable[[str], None]
) -> dict[str, Turns]:
    """Let contenders that are ready play all rounds, and return the turns of each by name.

    Parameters
    ----------
    contenders : sequence of Contender
    num_rounds : int
    turn_seconds : float
        About how long a turn takes, unless a single step takes longer; all turns of a contender have as many steps.
    say : callable
        Shown what goes on.
    """
    turns = {one.name: Turns(max(1, round(turn_seconds / one.ready["step_seconds"]))) for one in contenders}
    for number in range(num_rounds):
        say(f"round {number + 1} of {num_rounds}")
        for contender in turn_order(contenders, number):
            time.sleep(_PAUSE_SECONDS)
            mine = turns[contender.name]
            answer = contender.ask(steps=mine.steps)
            mine.step_seconds.append(answer["seconds"] / mine.steps)
            mine.peak_bytes = max(mine.peak_bytes, answer["peak_bytes"])
    return turns
