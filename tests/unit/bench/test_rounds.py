"""Rounds: who plays when, for how long, and what becomes of the turns."""

from __future__ import annotations

import numpy as np
import pytest

from hpdl_mpi.bench.rounds import play, turn_order
from hpdl_mpi.bench.statistics import pairwise_ratio, spread


class Fake:
    """A contender in this process whose steps take known times."""

    def __init__(self, name: str, step_seconds: list[float], log: list[tuple[str, int]]) -> None:
        self.name = name
        self.ready = {"step_seconds": step_seconds[0]}
        self._times = iter(step_seconds)
        self._log = log

    def ask(self, steps: int) -> dict[str, float]:
        self._log.append((self.name, steps))
        return {"seconds": steps * next(self._times), "peak_bytes": len(self._log)}


def test_every_other_round_goes_backwards():
    assert [turn_order("abc", number) for number in range(3)] == [list("abc"), list("cba"), list("abc")]


def test_rounds_interleave_the_contenders_and_keep_their_numbers_of_steps():
    log: list[tuple[str, int]] = []
    fast, slow = Fake("fast", [0.01, 0.02, 0.03], log), Fake("slow", [4.0, 5.0, 6.0], log)
    said: list[str] = []
    turns = play([fast, slow], 3, turn_seconds=1.0, say=said.append)
    # The slow one does a step, although it takes longer than a turn should.
    assert log == [("fast", 100), ("slow", 1), ("slow", 1), ("fast", 100), ("fast", 100), ("slow", 1)]
    assert turns["fast"].step_seconds == pytest.approx([0.01, 0.02, 0.03])
    assert turns["slow"].step_seconds == pytest.approx([4.0, 5.0, 6.0])
    assert (turns["fast"].peak_bytes, turns["slow"].peak_bytes) == (5, 6)
    assert said == ["round 1 of 3", "round 2 of 3", "round 3 of 3"]


def test_the_spread_is_made_of_quartiles():
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert spread(values) == {"min": 1.0, "lower_quartile": 2.0, "median": 3.0, "upper_quartile": 4.0, "max": 5.0}


def test_pairwise_ratios_cancel_what_slows_a_whole_round_down():
    disturbance = np.array([1.0, 1.7, 3.0])
    assert pairwise_ratio(2 * disturbance, disturbance) == dict.fromkeys(spread([0.0]), pytest.approx(2.0))
