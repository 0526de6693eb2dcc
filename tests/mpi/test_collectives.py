"""Collectives as schedules, on MPI ranks."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from hpdl_mpi.comm import Collective, Communicator, ring_allreduce
from tests.collective_cases import COLLECTIVES

pytestmark = pytest.mark.mpi(min_size=2)


@pytest.mark.parametrize("case", COLLECTIVES, ids=lambda case: case.__name__)
def test_mpi_ranks(case: Callable[[Communicator], None], world: Communicator) -> None:
    case(world)


def test_ranks_have_a_library_to_leave_sums_to(world: Communicator) -> None:
    assert world.library_name()


def test_second_call_allocates_no_array(world: Communicator) -> None:
    array = np.zeros(1 << 19, np.float32)
    collective = Collective(world, ring_allreduce(world.size, array.size, world.rank), array, segment_bytes=1 << 17)
    collective()
    tracemalloc.start()
    collective()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Python's own small objects; a segment is 128 KiB.
    assert peak < 1 << 14


def test_long_messages_arrive_whole(world: Communicator) -> None:
    # Several segments of the default length per chunk, the last one short.
    size = world.size * (5 << 18) + 1
    array = np.arange(size, dtype=np.float32) % 97 + world.rank
    Collective(world, ring_allreduce(world.size, size, world.rank), array)()
    expected = world.size * (np.arange(size) % 97) + sum(range(world.size))
    np.testing.assert_array_equal(array, expected)
