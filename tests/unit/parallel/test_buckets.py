"""Buckets of gradients: how they are cut, that they are summed while backward goes on, and that sums are right."""

from __future__ import annotations

from itertools import accumulate
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpdl_mpi import nn, optim
from hpdl_mpi.base.trace import Span, Trace
from hpdl_mpi.comm import Communicator, SingleCommunicator, run_threads
from hpdl_mpi.data import Batch
from hpdl_mpi.parallel import ProcessGrid, Replica, TrainingStep
from hpdl_mpi.parallel.buckets import GradientBuckets
from hpdl_mpi.parallel.pipeline import Pipeline, make_schedule
from hpdl_mpi.parallel.shards import cut_buckets
from tests.pipeline_training import check_outcomes, make_batch, run_alone, run_grid

WIDTH = 64


def make_replica(num_layers: int = 4, **settings: object) -> Replica:
    model = nn.Sequential(*(nn.Linear(WIDTH) for _ in range(num_layers)))
    return Replica(model, (WIDTH,), optim.SGD(0.1), dtype=np.float32, seed=0, **settings)


def slices_of(replica: Replica, max_bytes: int) -> list[tuple[int, int]]:
    return GradientBuckets(replica, SingleCommunicator(), max_bytes=max_bytes).slices


LAYER_BYTES = 4 * (WIDTH * WIDTH + WIDTH)


@pytest.mark.parametrize(
    ("max_bytes", "count"), [(1, 8), (LAYER_BYTES, 4), (2 * LAYER_BYTES, 2), (3 * LAYER_BYTES, 2), (10**9, 1)]
)
def test_buckets_are_whole_parameters_as_many_as_fit(max_bytes: int, count: int) -> None:
    replica = make_replica()
    slices = slices_of(replica, max_bytes)
    assert len(slices) == count
    assert [start for start, _ in slices[1:]] == [stop for _, stop in slices[:-1]]
    assert (slices[0][0], slices[-1][1]) == (0, replica.layout.size)
    assert {start for start, _ in slices} <= {segment.start for segment in replica.layout.segments}


@given(
    sizes=st.lists(st.integers(1, 2_000_000), min_size=1, max_size=40),
    max_bytes=st.sampled_from([1, 3_000_000, 25_000_000]),
    itemsize=st.sampled_from([4, 8]),
)
def test_no_bucket_of_several_parameters_is_more_than_half_of_what_is_left(
    sizes: list[int], max_bytes: int, itemsize: int
) -> None:
    stops = list(accumulate(sizes))
    segments = [
        SimpleNamespace(name="p", start=stop - size, stop=stop) for size, stop in zip(sizes, stops, strict=True)
    ]
    layout = SimpleNamespace(segments=segments, size=stops[-1])
    slices = list(cut_buckets(layout, {"p": 0}, itemsize, max_bytes))
    assert [start for start, _ in slices] + stops[-1:] == [0] + [stop for _, stop in slices]
    for start, stop in slices:
        limit = min(max_bytes, max(10**6, (layout.size - start) * itemsize // 2))
        assert start == stop - sizes[stops.index(stop)] or (stop - start) * itemsize <= limit


def test_no_bucket_waits_for_two_stages() -> None:
    pipeline = Pipeline(schedule=make_schedule("interleaved", 1, 2, 2), cuts=(2,))
    replica = make_replica(pipeline=pipeline)
    assert len(slices_of(replica, 10**9)) == 2


@pytest.mark.parametrize("bucket_bytes", [1, 400, 10**9])
@pytest.mark.parametrize("algorithm", ["auto", "ring", "two_shot", "tree"])
def test_gradients_are_those_of_one_process(bucket_bytes: int, algorithm: str) -> None:
    batch = make_batch(7)
    for name, pp, num_microbatches in (("1f1b", 1, 3), ("zb-h1", 2, 2), ("zb-v", 1, 2)):
        schedule = make_schedule(name, pp, num_microbatches)
        cuts = [4] if schedule.num_stages == 2 else []
        settings = {"bucket_bytes": bucket_bytes, "algorithm": algorithm}
        found = run_threads(2 * pp, lambda comm, s=schedule, c=cuts, k=settings: run_grid(comm, 2, s, c, batch, **k))
        check_outcomes(found, run_alone(batch, num_microbatches, dp=2), dp=2)


def test_machines_of_several_ranks_sum_through_both_networks() -> None:
    batch = make_batch(13)
    schedule = make_schedule("1f1b", 1, 2)
    nodes = [0, 0, 1, 1, 1]
    found = run_threads(5, lambda comm: run_grid(comm, 5, schedule, [], batch, bucket_bytes=400), nodes=nodes)
    check_outcomes(found, run_alone(batch, 2, dp=5), dp=5)


def run_step(comm: Communicator, **settings: object) -> tuple[list[Span], np.ndarray]:
    """Take a step on random samples; return what was recorded and the parameters."""
    replica = make_replica()
    step = TrainingStep(replica, nn.CrossEntropy(), ProcessGrid(comm, {"pp": 1, "dp": comm.size}), **settings)
    rng = np.random.default_rng(comm.rank)
    size = 8
    batch = Batch(
        rng.normal(size=(size, WIDTH)).astype(np.float32),
        rng.integers(0, WIDTH, size),
        np.arange(size),
        global_size=size * comm.size,
        offset=0,
    )
    trace = Trace()
    step.record(trace)
    for _ in range(2):
        trace.spans.clear()
        step(batch, epoch=0, lr=0.1)
    step.free()
    return trace.spans, replica.params.copy()


def test_reductions_begin_while_backward_goes_on_and_updates_do_not_wait_for_the_last() -> None:
    for spans, _ in run_threads(2, lambda comm: run_step(comm, bucket_bytes=1)):
        (backward,) = (span for span in spans if span.name == "0B0")
        reductions = [span for span in spans if span.kind == "reduce"]
        assert [span.name for span in reductions] == [f"bucket {number}" for number in range(8)]
        # Those of the layer that backward comes to last have nothing left to hide behind.
        assert all(span.start < backward.stop for span in reductions[:6])


@pytest.mark.parametrize("clip_norm", [None, 0.01])
def test_buckets_change_nothing_but_the_order_of_events(clip_norm: float | None) -> None:
    results = [
        run_threads(2, lambda comm, size=size: run_step(comm, bucket_bytes=size, clip_norm=clip_norm, algorithm="tree"))
        for size in (1, LAYER_BYTES, 10**9)
    ]
    for found in results:
        for _, params in found:
            np.testing.assert_array_equal(params, results[0][0][1])
