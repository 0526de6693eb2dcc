"""Batches through pipelines of MPI ranks: every schedule gives the gradients of one process."""

from __future__ import annotations

import pytest

from hpdl_mpi.comm import Communicator
from hpdl_mpi.parallel.pipeline import make_schedule
from tests.pipeline_cases import NAMES
from tests.pipeline_training import NUM_LAYERS, check_outcomes, make_batch, run_alone, run_pipeline


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_microbatches", [1, 5, 8])
def test_gradients_and_outputs_are_those_of_one_process(world: Communicator, name: str, num_microbatches: int) -> None:
    schedule = make_schedule(name, world.size, num_microbatches)
    cuts = [stage * NUM_LAYERS // schedule.num_stages for stage in range(1, schedule.num_stages)]
    feed = make_batch(13)
    found = world.allgather_obj(run_pipeline(world, schedule, cuts, feed))
    check_outcomes(found, run_alone(feed, num_microbatches))
