"""What a traced step records of its communication: sums, gathers, their rounds, and waits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import pytest

from hpdl_mpi import nn, optim
from hpdl_mpi.base.trace import Span, Trace
from hpdl_mpi.comm import Communicator, run_threads
from hpdl_mpi.data import Batch
from hpdl_mpi.parallel import ProcessGrid, Replica, TrainingStep
from hpdl_mpi.parallel.pipeline import complete, make_schedule
from hpdl_mpi.parallel.pipeline.measure import compare, split_steps
from hpdl_mpi.train import Parallel

WIDTH, SIZE, STEPS = 32, 4, 3


def make_model(normalises: bool) -> nn.Sequential:
    norm = [nn.BatchNorm2d()] if normalises else []
    return nn.Sequential(nn.Conv2d(4, 3), *norm, nn.Flatten(), nn.Linear(WIDTH), nn.Linear(WIDTH))


def take_steps(comm: Communicator, settings: Parallel, *, normalises: bool = False, **more: object) -> list[Span]:
    """Take some steps, of which all but the first and the last are recorded; return the spans."""
    replica = Replica(
        make_model(normalises),
        (6, 6, 1),
        optim.SGD(0.1),
        dtype=np.float32,
        seed=0,
        compression=settings.feedback,
        sharding=settings.sharded(comm.rank, comm.nodes),
    )
    step = TrainingStep(
        replica,
        nn.CrossEntropy(),
        ProcessGrid(comm, {"pp": 1, "dp": comm.size}),
        bucket_bytes=WIDTH * WIDTH * 4,
        algorithm=settings.algorithm,
        shared_memory=settings.shared_memory,
        sync_batch_norm=settings.sync_batch_norm,
        **more,
    )
    rng = np.random.default_rng(comm.rank)
    inputs, targets = rng.normal(size=(SIZE, 6, 6, 1)).astype(np.float32), rng.integers(0, WIDTH, SIZE)
    batch = Batch(inputs, targets, np.arange(SIZE), global_size=SIZE * comm.size, offset=0)
    trace = Trace()
    for number in range(STEPS + 2):
        step.record(trace if 0 < number <= STEPS else None)
        step(batch, epoch=0, lr=0.1)
    step.free()
    return trace.spans


def names(spans: Sequence[Span], kind: str) -> list[str]:
    return [span.name for span in spans if span.kind == kind]


def seconds(spans: Sequence[Span], kind: str) -> float:
    return sum(span.seconds for span in spans if span.kind == kind)


def rounds(spans: Sequence[Span], label: str) -> list[tuple[int, int, int]]:
    """Return first and last number of the rounds of a collective, and how many its program has."""
    pattern = re.compile(rf"{re.escape(label)}: rounds? (\d+)(?: to (\d+))? of (\d+): .+")
    found = [match for span in spans if span.kind == "round" and (match := pattern.fullmatch(span.name))]
    return [(int(match[1]), int(match[2] or match[1]), int(match[3])) for match in found]


@pytest.mark.parametrize("nodes", [[0, 0, 0], [0, 1, 2]])
def test_each_round_of_messages_is_recorded_once_in_each_step(nodes: list[int]) -> None:
    for spans in run_threads(3, lambda comm: take_steps(comm, Parallel(algorithm="ring")), nodes=nodes):
        assert len(split_steps(spans)) == STEPS
        buckets = {*names(spans, "reduce")}
        assert len(buckets) > 1
        for bucket in buckets:
            # A ring of three ranks: two rounds that sum, two that copy.
            assert sorted(rounds(spans, f"gradients, {bucket}")) == sorted((n, n, 4) for n in (1, 2, 3, 4) * STEPS)
            bars = [span for span in spans if span.kind == "reduce" and span.name == bucket]
            for span in spans:
                if span.kind == "round" and span.name.startswith(f"gradients, {bucket}:"):
                    assert any(bar.start <= span.start <= span.stop <= bar.stop for bar in bars)
                    assert re.search(
                        r": send \[\d+, \d+\) to rank \d; recv(_reduce)? \[\d+, \d+\) from rank \d$", span.name
                    )
        assert rounds(spans, "totals")


def test_rounds_in_shared_memory_are_recorded_call_by_call() -> None:
    for spans in run_threads(3, lambda comm: take_steps(comm, Parallel(algorithm="two_shot"))):
        found = rounds(spans, "gradients, bucket 0")
        assert {number for first, last, _ in found for number in range(first, last + 1)} == {
            number + 1 for number in range(found[0][2])
        }
        assert sum(first == 1 for first, _, _ in found) >= STEPS


@pytest.mark.parametrize("settings", [{"compression": "powersgd", "compression_rank": 1}, {"compression": "top-k"}])
def test_rounds_of_compressed_sums_are_recorded(settings: dict[str, Any]) -> None:
    for spans in run_threads(2, lambda comm: take_steps(comm, Parallel(**settings))):
        assert any(name.startswith("gradients, bucket 0") for name in names(spans, "round"))


@pytest.mark.parametrize("sharding", ["optimizer", "gradients"])
def test_gathers_of_parameters_are_bars_like_sums(sharding: str) -> None:
    settings = Parallel(sharding=sharding)
    for spans in run_threads(2, lambda comm: take_steps(comm, settings)):
        assert sorted(names(spans, "gather")) == sorted(names(spans, "reduce"))
        assert names(spans, "wait").count("parameters") == STEPS
        waits = [span for span in spans if span.name == "parameters"]
        assert all(any(span.start <= wait.stop for wait in waits) for span in spans if span.kind == "gather")
        assert rounds(spans, "parameters, bucket 0") == [(1, 1, 1)] * STEPS


def test_the_meeting_after_an_update_of_one_copy_is_a_gather() -> None:
    settings = Parallel(shared_memory="parameters")
    for spans in run_threads(2, lambda comm: take_steps(comm, settings)):
        assert len(names(spans, "gather")) == STEPS
        assert names(spans, "wait").count("parameters") == STEPS


def test_waits_of_batch_normalisation_are_no_computing() -> None:
    settings = Parallel(sync_batch_norm=True)
    schedule = complete(make_schedule("1f1b", 1, 1))
    for spans in run_threads(2, lambda comm: take_steps(comm, settings, normalises=True)):
        assert names(spans, "wait").count("moments") == 2 * STEPS  # forward and backward
        computed = [span for span in spans if span.kind == "compute"]
        for span in spans:
            if span.name == "moments":
                assert any(one.start <= span.start and span.stop <= one.stop for one in computed)
        steps = split_steps(spans)
        alone = [seconds(step, "compute") - sum(one.seconds for one in step if one.name == "moments") for step in steps]
        times, _ = compare(schedule, [steps])
        assert times.compute == pytest.approx(median(alone))
        assert times.wait == pytest.approx(median(seconds(step, "wait") for step in steps))


def test_steps_without_a_trace_record_nothing() -> None:
    def run(comm: Communicator) -> int:
        replica = Replica(make_model(False), (6, 6, 1), optim.SGD(0.1), dtype=np.float32, seed=0)
        step = TrainingStep(replica, nn.CrossEntropy(), ProcessGrid(comm, {"pp": 1, "dp": comm.size}))
        trace = Trace()
        step.record(trace)
        step.record(None)
        inputs = np.ones((SIZE, 6, 6, 1), np.float32)
        batch = Batch(inputs, np.zeros(SIZE, int), np.arange(SIZE), global_size=2 * SIZE, offset=0)
        step(batch, epoch=0, lr=0.1)
        step.free()
        return len(trace.spans)

    assert run_threads(2, run) == [0, 0]
