"""Batches through pipelines of threads: every schedule gives the gradients of one process."""

from __future__ import annotations

import pytest

from hpdl_mpi import nn
from hpdl_mpi.base.errors import InputError, TrainingError
from hpdl_mpi.comm import run_threads
from hpdl_mpi.comm.faults import Kill
from hpdl_mpi.parallel.pipeline import cut, make_schedule
from tests.pipeline_cases import NAMES
from tests.pipeline_training import NUM_LAYERS, check_outcomes, make_batch, make_model, run_alone, run_pipeline

CUTS = {
    1: [[]],
    2: [[4], [1], [7]],
    3: [[2, 4], [1, 2]],
    4: [[1, 3, 6], [2, 4, 5]],
    6: [[1, 2, 3, 5, 6]],
    8: [list(range(1, NUM_LAYERS))],
}
"""Numbers of stages, and where to cut: evenly or not, and so that a stage has no parameters."""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_gradients_and_outputs_are_those_of_one_process(name: str, num_ranks: int) -> None:
    for num_microbatches in (1, 2, 5):
        schedule = make_schedule(name, num_ranks, num_microbatches)
        for cuts in CUTS[schedule.num_stages]:
            for num_samples in (13, 3):  # fewer samples than micro-batches leave some empty
                feed = make_batch(num_samples)
                found = run_threads(
                    num_ranks,
                    lambda comm, cuts=cuts, schedule=schedule, feed=feed: run_pipeline(comm, schedule, cuts, feed),
                )
                check_outcomes(found, run_alone(feed, num_microbatches))


def test_a_rank_that_fails_says_at_which_action() -> None:
    feed = make_batch(8)
    feed.targets[5] = 99  # in the last micro-batch but one

    with pytest.raises(InputError) as caught:
        run_threads(2, lambda comm: run_pipeline(comm, make_schedule("1f1b", 2, 4), [4], feed))
    (note,) = caught.value.__notes__
    assert note == ("rank 1 of the pipeline, action 12 of 21: 1I1 1SEND_B1 1W1 [1F2] 1RECV_F3 1I2 1SEND_B2")


def test_a_rank_that_is_killed_ends_the_others() -> None:
    feed = make_batch(8)
    with pytest.raises(TrainingError, match="killed"):
        run_threads(
            2,
            lambda comm: run_pipeline(comm, make_schedule("1f1b", 2, 4), [4], feed),
            faults=[Kill(rank=1, index=3)],
        )


def test_stages_have_the_names_and_shapes_of_the_whole_model() -> None:
    stages = cut(make_model(), (5,), [2, 4])
    assert [stage.input_shape for stage in stages] == [(5,), (6,), (6,)]
    assert [list(stage.model.children) for stage in stages] == [["0", "1"], ["2", "3"], ["4", "5", "6", "7"]]
    assert stages[2].model.children["6"].path == "6"


@pytest.mark.parametrize("cuts", [[0], [NUM_LAYERS], [3, 3], [4, 2]])
def test_cuts_that_leave_a_stage_empty_are_refused(cuts: list[int]) -> None:
    with pytest.raises(InputError, match=r"parallel\.cuts: the cuts leave a stage without layers"):
        cut(make_model(), (5,), cuts)


def test_only_a_sequential_can_be_cut() -> None:
    with pytest.raises(InputError, match="only a Sequential can be cut into stages"):
        cut(nn.Linear(3), (5,), [1])
