"""The partitioner agrees with trying all cuts."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.parallel.pipeline import complete, make_schedule
from hpdl_mpi.parallel.pipeline.partition import LayerCost, StageCosts, StageLoad, partition, stage_loads

sizes = st.integers(0, 5)
loads = st.builds(StageLoad, st.lists(st.tuples(sizes, sizes), min_size=1, max_size=3).map(tuple), sizes, sizes)
ONE = StageLoad(((1, 0),))
layer_costs = st.builds(
    LayerCost,
    *(st.integers(0, 20).map(float),) * 2,
    st.integers(0, 20),
    sizes,
    sizes,
    sizes,
    sizes,
    working_bytes=sizes,
)


def stages_of(layers: list[LayerCost], cuts: list[int]) -> list[list[LayerCost]]:
    return [layers[start:stop] for start, stop in itertools.pairwise([0, *cuts, len(layers)])]


def seconds(stage: list[LayerCost], recompute: bool) -> float:
    return sum(layer.backward + layer.forward * (1 + recompute) for layer in stage)


def nbytes(layers: list[LayerCost], cuts: list[int], number: int, load: StageLoad, recompute: bool) -> float:
    """Return what a stage takes, counted one thing after the other."""
    stages = stages_of(layers, cuts)
    stage = stages[number]
    total = max(layer.working_bytes for layer in stage) + sum(layer.fixed_bytes for layer in stage)
    moments = []
    for waiting, late in load.peaks:
        kept = sum(layer.saved_bytes for layer in stage) * (min(waiting, 1) if recompute else waiting)
        if number + 1 == len(stages):
            kept += stage[-1].output_bytes * waiting
        moments.append(kept + sum(layer.deferred_bytes for layer in stage) * late)
    if number > 0:
        total += (load.inputs + 1) * stage[0].input_bytes
    if number + 1 < len(stages):
        total += (load.gradients + 1) * stages[number + 1][0].input_bytes
    return total + max(moments)


@given(data=st.data(), layers=st.lists(layer_costs, min_size=1, max_size=7), recompute=st.booleans())
def test_the_slowest_stage_is_as_fast_as_trying_all_cuts_finds(
    data: st.DataObject, layers: list[LayerCost], recompute: bool
) -> None:
    num_stages = data.draw(st.integers(1, len(layers)))
    held = data.draw(st.lists(loads, min_size=num_stages, max_size=num_stages))
    limit = data.draw(st.one_of(st.just(math.inf), st.integers(0, 80).map(float)))

    def rating(cuts: list[int]) -> tuple[float, float]:
        times = [
            seconds(stage, recompute) if nbytes(layers, cuts, number, held[number], recompute) <= limit else math.inf
            for number, stage in enumerate(stages_of(layers, cuts))
        ]
        return max(times), sum(time**2 for time in times)

    ratings = [rating(list(cuts)) for cuts in itertools.combinations(range(1, len(layers)), num_stages - 1)]
    slowest = min(ratings)[0]
    best = slowest, min(squares for longest, squares in ratings if longest <= slowest * 1.02 or math.isinf(slowest))
    costs = StageCosts(layers, held, recompute=recompute)
    if math.isinf(best[0]):
        with pytest.raises(InputError, match="no cuts keep all stages within the memory"):
            partition(costs, limit)
    else:
        cuts = partition(costs, limit)
        assert all(stages_of(layers, cuts))
        longest, squares = rating(cuts)
        assert longest <= slowest * 1.02
        assert squares == best[1]


def test_of_equally_slow_cuts_the_most_even_ones_are_taken() -> None:
    layers = [LayerCost(seconds, 0.0) for seconds in (9.0, 1.0, 1.0, 1.0, 1.0)]
    assert partition(StageCosts(layers, [ONE] * 3)) == [1, 3]


def test_a_stage_that_keeps_more_micro_batches_gets_fewer_layers() -> None:
    costs = StageCosts([LayerCost(1.0, 2.0, saved_bytes=10)] * 6, [StageLoad(((2, 0),)), ONE])
    assert partition(costs) == [3]
    assert partition(costs, limit_bytes=40) == [2]


def test_more_stages_than_layers_are_refused_with_what_works() -> None:
    with pytest.raises(InputError, match="Found 3 stages, 2 layers to cut between; expected at most 2"):
        partition(StageCosts([LayerCost(1.0, 2.0)] * 2, [ONE] * 3))


def test_two_hundred_layers_are_cut_quickly() -> None:
    cuts = partition(StageCosts([LayerCost(1.0, 2.0)] * 200, [ONE] * 8))
    assert cuts == [25 * stage for stage in range(1, 8)]


def test_what_stages_keep_at_once_is_what_schedules_promise() -> None:
    p, m = 4, 8

    def peaks(name: str) -> list[int]:
        return [max(map(sum, load.peaks)) for load in stage_loads(complete(make_schedule(name, p, m)))]

    assert peaks("gpipe") == [m] * p
    assert peaks("1f1b") == [4, 3, 2, 1]
    assert peaks("zb-h1") == [4, 4, 4, 4]
    assert peaks("zb-h2") == [7, 7, 7, 7]
    (load,) = stage_loads(complete(make_schedule("1f1b", 1, m)))
    assert load == StageLoad(((1, 0),))
