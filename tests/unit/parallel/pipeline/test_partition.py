"""The partitioner agrees with trying all cuts."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.parallel.pipeline.partition import LayerCost, partition

layer_costs = st.builds(LayerCost, st.integers(0, 20).map(float), st.integers(0, 20), st.integers(0, 5))


def stages_of(layers: list[LayerCost], cuts: list[int]) -> list[list[LayerCost]]:
    return [layers[start:stop] for start, stop in itertools.pairwise([0, *cuts, len(layers)])]


def slowest(layers: list[LayerCost], cuts: list[int], held: list[int], limit: float) -> float:
    """Return the time of the slowest stage, infinite if a stage does not fit."""
    times = []
    for stage, count in zip(stages_of(layers, cuts), held, strict=True):
        needed = sum(layer.fixed_bytes + count * layer.saved_bytes for layer in stage)
        times.append(sum(layer.seconds for layer in stage) if needed <= limit else math.inf)
    return max(times)


def unevenness(layers: list[LayerCost], cuts: list[int]) -> float:
    return sum(sum(layer.seconds for layer in stage) ** 2 for stage in stages_of(layers, cuts))


@given(data=st.data(), layers=st.lists(layer_costs, min_size=1, max_size=7))
def test_the_slowest_stage_is_as_fast_as_trying_all_cuts_finds(data: st.DataObject, layers: list[LayerCost]) -> None:
    num_stages = data.draw(st.integers(1, len(layers)))
    held = data.draw(st.lists(st.integers(1, 4), min_size=num_stages, max_size=num_stages))
    limit = data.draw(st.one_of(st.just(math.inf), st.integers(0, 60).map(float)))
    tried = itertools.combinations(range(1, len(layers)), num_stages - 1)
    possible = [(slowest(layers, list(cuts), held, limit), unevenness(layers, list(cuts))) for cuts in tried]
    best = min(possible)
    if math.isinf(best[0]):
        with pytest.raises(InputError, match="no cuts keep all stages within the memory"):
            partition(layers, held, limit)
    else:
        cuts = partition(layers, held, limit)
        assert all(stages_of(layers, cuts))
        assert (slowest(layers, cuts, held, limit), unevenness(layers, cuts)) == best


def test_of_equally_slow_cuts_the_most_even_ones_are_taken() -> None:
    layers = [LayerCost(seconds) for seconds in (9.0, 1.0, 1.0, 1.0, 1.0)]
    assert partition(layers, [1, 1, 1]) == [1, 3]


def test_a_stage_that_keeps_more_micro_batches_gets_fewer_layers() -> None:
    layers = [LayerCost(1.0, saved_bytes=10)] * 6
    assert partition(layers, [2, 1]) == [3]
    assert partition(layers, [2, 1], limit_bytes=40) == [2]


def test_more_stages_than_layers_are_refused_with_what_works() -> None:
    with pytest.raises(InputError, match="Found 3 stages, 2 layers to cut between; expected at most 2 stages"):
        partition([LayerCost(1.0)] * 2, [1, 1, 1])


def test_two_hundred_layers_are_cut_quickly() -> None:
    cuts = partition([LayerCost(1.0)] * 200, [1] * 8)
    assert cuts == [25 * stage for stage in range(1, 8)]
