"""Who is late follows from where ranks are."""

from __future__ import annotations

import pytest

from hpdl_mpi.comm.whereabouts import Position, Whereabouts, explain, find_late, name_ranks


def waiting(*peers: int, step: int = 5) -> Position:
    return Position(step, 9, "gradients", 3.0, peers)


def working(step: int = 5) -> Position:
    return Position(step, 9, "gradients", 0.0, ())


@pytest.mark.parametrize(
    ("positions", "late", "said"),
    [
        pytest.param({0: waiting(1), 1: working()}, [1], "rank 1 is late", id="one works"),
        pytest.param({0: waiting(1), 1: waiting(2)}, [2], "rank 2 is late", id="one is silent"),
        pytest.param({0: waiting(2), 1: working(), 2: working()}, [2], "rank 2 is late", id="one is not awaited"),
        pytest.param({0: waiting(1, 2)}, [1, 2], "ranks 1 and 2 are late", id="two are silent"),
        pytest.param(
            {0: waiting(1), 1: waiting(0, step=6), 2: waiting(1)}, [1], "rank 1 is in another step", id="skip"
        ),
        pytest.param({0: waiting(1), 1: waiting(0)}, [], "they do not make the same calls", id="mismatch"),
    ],
)
def test_those_are_late_for_whom_others_wait_and_who_do_not_wait(
    positions: dict[int, Position], late: list[int], said: str
) -> None:
    ranks = range(1 + max([*positions, *(peer for position in positions.values() for peer in position.peers)]))
    assert find_late(positions, ranks) == late
    assert said in explain(positions, ranks)


def test_ranks_are_named_in_a_sentence() -> None:
    assert [name_ranks(ranks) for ranks in ([], [2], [0, 2], [0, 1, 2])] == [
        "nobody",
        "rank 2",
        "ranks 0 and 2",
        "ranks 0, 1 and 2",
    ]


def test_position_tells_what_a_rank_has_begun() -> None:
    whereabouts = Whereabouts()
    whereabouts.step = 4
    whereabouts.begin("gradients, bucket 2")
    assert str(whereabouts.position()) == "step 4, operation 1: at work, after gradients, bucket 2"
