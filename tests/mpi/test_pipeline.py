"""Batches through grids of MPI ranks: every schedule gives the gradients of one process."""

from __future__ import annotations

import pytest

from hpdl_mpi.comm import Communicator
from hpdl_mpi.parallel.pipeline import make_schedule
from tests.pipeline_cases import NAMES
from tests.pipeline_training import NUM_LAYERS, check_outcomes, make_batch, run_alone, run_grid


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_microbatches", [1, 5, 8])
def test_gradients_and_outputs_are_those_of_one_process(world: Communicator, name: str, num_microbatches: int) -> None:
    for dp in (dp for dp in (1, 2) if world.size % dp == 0):
        schedule = make_schedule(name, world.size // dp, num_microbatches)
        cuts = [stage * NUM_LAYERS // schedule.num_stages for stage in range(1, schedule.num_stages)]
        found = world.allgather_obj(run_grid(world, dp, schedule, cuts, make_batch(13), clip_norm=1e6))
        check_outcomes(found, run_alone(make_batch(13), num_microbatches, dp), dp)
