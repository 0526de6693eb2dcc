"""Contenders that play on all ranks at once: each rank has its part of every one, and rounds are collective."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from hpdl_mpi.bench.contender import Contender
from hpdl_mpi.bench.rounds import turn_order
from hpdl_mpi.comm import Communicator
from hpdl_mpi.kernels.elementwise import add

_PAUSE_SECONDS = 0.05
_LEAST_STEPS = 3


class Player(Protocol):
    """What takes turns on all ranks at once."""

    warm_seconds: float
    num_parameters: int

    @property
    def peak_bytes(self) -> int:
        """The most memory that it held, above the level after imports."""

    def turn(self, steps: int) -> float:
        """Run steps and return the seconds of all. Collective."""


def play_together(
    comm: Communicator,
    players: Mapping[str, Player],
    num_rounds: int,
    turn_seconds: float,
    say: Callable[[str], None],
) -> dict[str, list[float]]:
    """Let all players take a turn in each round; return the mean step of each turn, of the slowest rank. Collective.

    Parameters
    ----------
    comm : Communicator
    players : mapping of str to Player
    num_rounds : int
    turn_seconds : float
        About how long a turn takes; all turns of a player have as many steps, a few at least.
    say : callable
        Shown on rank 0 what goes on.
    """
    warm = {name: max(comm.allgather_obj(player.warm_seconds)) for name, player in players.items()}
    steps = {name: max(_LEAST_STEPS, round(turn_seconds / seconds)) for name, seconds in warm.items()}
    means: dict[str, list[float]] = {name: [] for name in players}
    for number in range(num_rounds):
        if comm.rank == 0:
            say(f"round {number + 1} of {num_rounds}")
        for name in turn_order(list(players), number):
            comm.barrier()
            time.sleep(_PAUSE_SECONDS)
            seconds = players[name].turn(steps[name])
            means[name].append(max(comm.allgather_obj(seconds)) / steps[name])
    return means


def check_twins(comm: Communicator, players: Mapping[str, Player]) -> None:
    """See that all train models of one size. Collective."""
    sizes = {name: sum(comm.allgather_obj(player.num_parameters)) for name, player in players.items()}
    if len(set(sizes.values())) > 1:
        raise RuntimeError(f"the contenders' models differ in their numbers of parameters: {sizes}")


def wake_numba() -> None:
    """Let Numba load what it loads at its first call, so that this counts as an import."""
    add(np.zeros(1), np.zeros(1), np.zeros(1))


class ChildPlayer:
    """Each rank's process of its own. Methods are collective if the processes meet, as those over Gloo do.

    Parameters
    ----------
    child : Contender
        Not started yet.
    """

    def __init__(self, child: Contender) -> None:
        self._child = child
        self.warm_seconds, self.num_parameters, self.peak_bytes = 0.0, 0, 0

    def __enter__(self) -> ChildPlayer:
        self._child.__enter__()
        self.warm_seconds = self._child.ready["step_seconds"]
        self.num_parameters = self._child.ready["num_parameters"]
        return self

    def __exit__(self, *exception: Any) -> None:
        self._child.__exit__(*exception)

    def turn(self, steps: int) -> float:
        """See `Player.turn`."""
        answer = self._child.ask(steps=steps)
        self.peak_bytes = max(self.peak_bytes, answer["peak_bytes"])
        return answer["seconds"]
