"""Measured layers and what is planned with them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from hpdl_mpi import nn
from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import Communicator, run_threads
from hpdl_mpi.models import mlp
from hpdl_mpi.optim import SGD
from hpdl_mpi.parallel import Replica
from hpdl_mpi.parallel.pipeline import FAMILIES, Feed, Pipeline, complete, make_schedule, pieces, stage_loads
from hpdl_mpi.plan import Task, costs, measure_layers, plan_pipeline, stage_costs

SIZE, WIDTH = 8, 64
ARRAY = SIZE * WIDTH * 4
"""Bytes of a micro-batch's activations."""


def make_task(model: nn.Layer | None = None, **settings: object) -> Task:
    return Task(model or mlp([WIDTH] * 3, 16), (WIDTH,), nn.CrossEntropy(), **settings)


def measure(task: Task) -> list[costs.LayerCost]:
    task.model.build(task.input_shape)
    return measure_layers(task, pieces(task.model), SIZE)


def test_layers_cost_what_they_keep() -> None:
    task = make_task(held=3)
    found = measure(task)
    linear = 3 * (WIDTH * WIDTH + WIDTH) * 4  # parameters, gradients, a slot
    assert [cost.fixed_bytes for cost in found] == [0, *[linear, 0] * 3, 3 * (16 * WIDTH + 32) * 4]
    # ReLU keeps its output, which the next Linear's input is; the samples are the loader's
    assert [cost.saved_bytes for cost in found] == [0, 0, ARRAY, 0, ARRAY, 0, ARRAY, 0]
    # Linear keeps its input and its output's gradient until wgrad; the last one's are 16 wide
    assert [cost.deferred_bytes for cost in found] == [0, ARRAY, 0, 2 * ARRAY, 0, 2 * ARRAY, 0, ARRAY + ARRAY // 4]
    assert all(cost.input_bytes == ARRAY for cost in found)
    assert all(cost.forward > 0 and cost.backward >= 0 for cost in found)
    assert not any(layer.params for layer in nn.walk(task.model)), "nothing stays allocated"


def test_layers_that_are_alike_are_measured_once() -> None:
    found = measure(make_task())
    assert found[3] == found[5]
    assert found[2] == found[4] == found[6]
    assert found[1] != found[3]  # nothing before it wants a gradient


@pytest.mark.parametrize("recompute", ["none", "stage", "block"])
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("pp", [1, 2, 3])
def test_stages_take_no_more_memory_than_planned(name: str, pp: int, recompute: str) -> None:
    schedule = make_schedule(name, pp, 6)
    blocks = (nn.Residual(nn.Sequential(nn.Linear(WIDTH), nn.Tanh(), nn.Linear(WIDTH), nn.Tanh())) for _ in range(8))
    task = make_task(nn.Sequential(*blocks, nn.Linear(16)), recompute=recompute)
    cuts = tuple(9 * stage // schedule.num_stages for stage in range(1, schedule.num_stages))
    costs = stage_costs(task, schedule, SIZE)
    bounds = list(pairwise([0, *cuts, 9]))
    planned = [
        sum(costs.nbytes(stage, *bounds[stage]) for stage, owner in enumerate(schedule.stage_ranks) if owner == rank)
        for rank in range(pp)
    ]

    def run(comm: Communicator) -> int:
        blocks = (
            nn.Residual(nn.Sequential(nn.Linear(WIDTH), nn.Tanh(), nn.Linear(WIDTH), nn.Tanh())) for _ in range(8)
        )
        model = nn.Sequential(*blocks, nn.Linear(16))
        pipeline = Pipeline(comm, schedule, cuts, recompute)
        replica = Replica(model, (WIDTH,), SGD(0.1), dtype=np.float32, seed=0, pipeline=pipeline)
        feed = Feed(np.arange(6 * SIZE), np.zeros((6 * SIZE, WIDTH), np.float32), np.zeros(6 * SIZE, np.int64))
        replica.learn(feed, nn.CrossEntropy())
        own = set(pipeline.own)
        slots = sum(
            load.inputs + load.gradients for stage, load in enumerate(stage_loads(complete(schedule))) if stage in own
        )
        return replica.params.nbytes + replica.grads.nbytes + replica.pool.peak_live + slots * ARRAY

    # A pool may serve an array with a free buffer of four times its size, as those of the loss's gradients.
    waste = 6 * 3 * SIZE * 16 * 4
    for expected, taken in zip(planned, run_threads(pp, run), strict=True):
        assert taken - waste <= expected <= 1.5 * taken


def test_stages_take_equal_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "hpdl_mpi.plan.pipeline.measure_layers",
        lambda task, layers, size: [costs.LayerCost(1.0, 2.0) for _ in layers],
    )
    schedule, cuts = plan_pipeline(make_task(), num_ranks=4, max_share=64)
    assert cuts == (2, 4, 6)
    assert schedule.num_microbatches == 16
    assert plan_pipeline(make_task(), num_ranks=4, max_share=5)[0].num_microbatches == 5


def test_one_rank_without_a_limit_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("hpdl_mpi.plan.pipeline.measure_layers")
    schedule, cuts = plan_pipeline(make_task(nn.Linear(3)), num_ranks=1, max_share=64)
    assert (schedule.num_stages, schedule.num_microbatches, cuts) == (1, 1, ())


def test_a_model_that_is_not_cut_may_be_anything() -> None:
    schedule, cuts = plan_pipeline(make_task(nn.Linear(16)), num_ranks=1, max_share=64, limit_bytes=12_000)
    assert schedule.num_microbatches > 1
    assert cuts == ()
    with pytest.raises(InputError, match="only a Sequential can be cut"):
        plan_pipeline(make_task(nn.Linear(16)), num_ranks=2, max_share=64)
