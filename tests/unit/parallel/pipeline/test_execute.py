"""Batches through grids of threads: every schedule gives the gradients of one process."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hpdl_mpi import nn
from hpdl_mpi.base.errors import InputError, TrainingError
from hpdl_mpi.base.trace import Trace
from hpdl_mpi.comm import run_threads
from hpdl_mpi.comm.faults import Kill
from hpdl_mpi.optim import SGD
from hpdl_mpi.parallel import Replica
from hpdl_mpi.parallel.pipeline import Feed, Pipeline, Schedule, complete, cut, make_schedule
from tests.pipeline_cases import NAMES
from tests.pipeline_training import (
    CLASSES,
    FEATURES,
    NUM_LAYERS,
    Outcome,
    check_outcomes,
    make_batch,
    make_model,
    run_alone,
    run_grid,
)

CUTS = {
    1: [[]],
    2: [[4], [1], [7]],
    3: [[2, 4], [1, 2]],
    4: [[1, 3, 6], [2, 4, 5]],
    6: [[1, 2, 3, 5, 6]],
    8: [list(range(1, NUM_LAYERS))],
}
"""Numbers of stages, and where to cut: evenly or not, and so that a stage has no parameters."""


def on_threads(dp: int, schedule: Schedule, cuts: list[int], num_samples: int, **settings: object) -> list[Outcome]:
    batch = make_batch(num_samples)
    return run_threads(dp * schedule.num_ranks, lambda comm: run_grid(comm, dp, schedule, cuts, batch, **settings))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_gradients_and_outputs_are_those_of_one_process(name: str, num_ranks: int) -> None:
    for num_microbatches in (1, 2, 5):
        schedule = make_schedule(name, num_ranks, num_microbatches)
        for cuts in CUTS[schedule.num_stages]:
            for num_samples in (13, 3):  # fewer samples than micro-batches leave some empty
                found = on_threads(1, schedule, cuts, num_samples)
                check_outcomes(found, run_alone(make_batch(num_samples), num_microbatches))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dp", "pp"), [(2, 1), (2, 2), (3, 2), (2, 3)])
def test_pipelines_side_by_side_sum_their_gradients(name: str, dp: int, pp: int) -> None:
    for num_microbatches, num_samples in ((2, 13), (5, 7), (3, 1)):  # some pipelines have no sample at all
        schedule = make_schedule(name, pp, num_microbatches)
        found = on_threads(dp, schedule, CUTS[schedule.num_stages][0], num_samples)
        check_outcomes(found, run_alone(make_batch(num_samples), num_microbatches, dp), dp)


@pytest.mark.parametrize("recompute", ["stage", "block"])
@pytest.mark.parametrize("name", NAMES)
def test_recomputing_changes_no_bit(name: str, recompute: str) -> None:
    schedule = make_schedule(name, 2, 3)
    cuts = CUTS[schedule.num_stages][0]
    check_outcomes(on_threads(1, schedule, cuts, 13, recompute=recompute), run_alone(make_batch(13), 3))


def test_clipping_sees_the_norm_over_all_stages_with_tied_weights_once() -> None:
    expected = run_alone(make_batch(13), 3)
    norm = np.sqrt(sum(np.sum(gradient**2) for gradient in expected.gradients.values()))
    for dp, pp in ((1, 1), (1, 2), (2, 2), (1, 4)):
        schedule = make_schedule("1f1b", pp, 3)
        for outcome in on_threads(dp, schedule, CUTS[pp][0], 13, clip_norm=norm / 10):
            for name, gradient in outcome.gradients.items():
                clipped = expected.gradients[name] / (10 * (1 + 1e-6 / norm))
                np.testing.assert_allclose(gradient, clipped, rtol=1e-9, atol=1e-15)


def make_replica(pipeline: Pipeline) -> Replica:
    return Replica(make_model(), (FEATURES,), SGD(0.1), dtype=np.float64, seed=0, pipeline=pipeline)


def feed_of(num_samples: int) -> Feed:
    return Feed.of(make_batch(num_samples), scale=1 / num_samples)


class Listener:
    """Writes down what it is told of, with the number of spans recorded before."""

    progress = None

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self.heard: list[tuple[str, int]] = []

    def _hear(self, what: str) -> None:
        self.heard.append((what, len(self._trace.spans)))

    def forward_done(self, sums: nn.LossSums) -> None:
        self._hear(f"forward {sums.weight}")

    def layer_landed(self, layer: nn.Layer) -> None:
        self._hear(f"layer {layer.path}")

    def stage_landed(self, stage: int) -> None:
        self._hear(f"stage {stage}")

    def move_along(self) -> None:
        pass


def test_companion_hears_of_layers_and_stages_at_their_last_weight_gradient_while_the_rank_goes_on() -> None:
    schedule = make_schedule("interleaved", 1, 4, 2)
    replica = make_replica(Pipeline(schedule=schedule, cuts=(4,)))
    trace = Trace()
    listener = Listener(trace)
    executor = replica.trainer(nn.CrossEntropy(), listener)
    executor.trace = trace
    executor.run(feed_of(8))
    computed = [span.name for span in trace.spans]
    assert computed == [str(a) for a in complete(schedule).programs[0] if a.op in ("F", "B", "I", "W")] + ["messages"]
    heard = dict(listener.heard)
    assert len(heard) == len(listener.heard), "each is heard of once"
    assert [what for what, _ in listener.heard if what.startswith("stage")] == ["stage 1", "stage 0"]
    assert computed[heard["forward 8.0"] - 1] == "1F3"
    for stage, layers in ((1, ["7", "6", "5", "4"]), (0, ["3", "2.body.1", "2.body.0", "2", "1", "0"])):
        told = [what for what, _ in listener.heard if what.removeprefix("layer ") in layers]
        assert [what.removeprefix("layer ") for what in told if "body" not in what] == [
            name for name in layers if "body" not in name
        ]
        # Before the span of the stage's last backward ends; the stage itself after it.
        assert {computed[heard[what]] for what in told} == {f"{stage}B3"}
        assert computed[heard[f"stage {stage}"] - 1] == f"{stage}B3"


def test_a_recomputed_stage_keeps_its_input_alone() -> None:
    peaks = []
    for recompute in ("none", "stage"):
        schedule = make_schedule("gpipe", 1, 8, None)
        replica = make_replica(Pipeline(schedule=schedule, recompute=recompute))
        replica.learn(feed_of(64), nn.CrossEntropy())
        peaks.append(replica.pool.peak_live)
    assert peaks[1] < 0.5 * peaks[0]


def test_a_rank_that_fails_shows_the_grid_and_its_place() -> None:
    batch = make_batch(8)
    batch.targets[5] = 99  # in the last micro-batch but one

    with pytest.raises(InputError) as caught:
        run_threads(2, lambda comm: run_grid(comm, 1, make_schedule("1f1b", 2, 4), [4], batch))
    (note,) = caught.value.__notes__
    assert note.splitlines() == [
        "rank 1 of the pipeline was at 1F2, action 12 of 21:",
        "   0 F0F1..B0  F2B1  F3B2  ..B3  ",
        "   1 ..F0I0W0F1I1W1F2I2W2F3I3W3..",
        "                   ^^",
    ]


def test_a_rank_that_is_killed_ends_the_others_which_say_what_they_wait_for() -> None:
    said: list[str] = []
    for index in itertools.count(3, 5):
        try:
            run_threads(
                2,
                lambda comm: run_grid(comm, 1, make_schedule("1f1b", 2, 4), [4], make_batch(8)),
                faults=[Kill(rank=1, index=index)],
            )
        except TrainingError as error:
            said.append(str(error))
        else:  # the run has fewer calls
            break
    assert all("rank 1 was killed" in one for one in said)
    for awaited in ("recv of 8 bytes", "gradients of outputs of stage 0, micro-batch 1 (rank 0: recv of"):
        assert any(f"rank 0 waits: {awaited}" in one or f"rank 0: {awaited}" in one for one in said), awaited


def test_stages_have_the_names_and_shapes_of_the_whole_model() -> None:
    stages = cut(make_model(), (FEATURES,), [2, 4])
    assert [stage.input_shape for stage in stages] == [(5,), ((6,),) * 3, ((6,),) * 3]
    assert [list(stage.model.children) for stage in stages] == [["0", "1"], ["2", "3"], ["4", "5", "6", "7"]]
    assert stages[2].model.children["6"].path == "6"
    assert stages[2].names == {"2.body.0.weight", "6.bias", "7.weight", "7.bias"}
    assert stages[2].output_shape == (CLASSES,)


@pytest.mark.parametrize("cuts", [[0], [NUM_LAYERS], [3, 3], [4, 2]])
def test_cuts_that_leave_a_stage_empty_are_refused(cuts: list[int]) -> None:
    with pytest.raises(InputError, match=r"parallel\.cuts: the cuts leave a stage without layers"):
        cut(make_model(), (FEATURES,), cuts)


def test_only_a_sequential_can_be_cut() -> None:
    with pytest.raises(InputError, match="only a Sequential can be cut into stages"):
        cut(nn.Linear(3), (5,), [1])


def test_a_model_without_blocks_has_none_to_recompute() -> None:
    with pytest.raises(InputError, match=r"parallel\.recompute: the model has no blocks"):
        cut(nn.Sequential(nn.Linear(3)), (5,), [], "block")


def test_a_layer_that_stands_in_two_stages_is_refused_as_on_one_rank() -> None:
    layer = nn.Linear(5)
    for cuts in ([], [2]):
        with pytest.raises(InputError, match="the same layer stands in the model more than once"):
            cut(nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(3)), (5,), cuts)


@pytest.mark.parametrize("nodes", [[0, 1, 2, 3], [0, 0, 1, 1]])
@pytest.mark.parametrize("name", NAMES)
def test_messages_between_machines_and_within_give_the_same(name: str, nodes: list[int]) -> None:
    schedule = make_schedule(name, 4, 5)
    cuts = CUTS[schedule.num_stages][0]
    batch = make_batch(13)
    found = run_threads(4, lambda comm: run_grid(comm, 1, schedule, cuts, batch), nodes=nodes)
    check_outcomes(found, run_alone(batch, 5))


class Leaking(nn.Linear):
    def forward(self, x, ctx):
        ctx.save(forgotten=x)
        return super().forward(x, ctx)


def test_a_layer_that_keeps_something_is_named() -> None:
    replica = Replica(nn.Sequential(Leaking(3)), (FEATURES,), SGD(0.1), dtype=np.float64, seed=0)
    with pytest.raises(AssertionError, match=r"a layer keeps something after its backward: .*0:forgotten"):
        replica.learn(feed_of(4), nn.CrossEntropy())
