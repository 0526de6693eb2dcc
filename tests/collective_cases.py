"""What collectives promise on every form of Communicator: functions of one, run on threads and on MPI ranks."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.base.shares import share
from hpdl_mpi.comm import (
    ALLREDUCES,
    LIBRARY,
    Arena,
    Collective,
    Communicator,
    make_allreduce,
    ring_all_gather,
    ring_allreduce,
    ring_reduce_scatter,
)
from hpdl_mpi.comm.shared_rounds import SharedMemory, share_memory
from hpdl_mpi.kernels.shared_steps import REDUCE_BOTH, STREAM
from tests.communicator_cases import numbers


def lengths(num_ranks: int) -> list[int]:
    """Return the lengths that collectives are tried on."""
    return sorted({0, 1, num_ranks - 1, num_ranks + 1, 1000})


def every_allreduce_sums_to_the_same_bits_everywhere(comm: Communicator) -> None:
    for name, algorithm in ALLREDUCES.items():
        if algorithm.one_machine and comm.num_nodes > 1:
            continue
        for dtype in ("float32", "float64"):
            for size in lengths(comm.size):
                _check_allreduce(comm, name, dtype, size)


def the_library_sums_to_the_same_bits_everywhere(comm: Communicator) -> None:
    """MPI leaves that to its library; ranks that have none say so."""
    if not comm.library_name():
        with pytest.raises(InputError, match="no all-reduce of an MPI library"):
            make_allreduce(comm, np.zeros(4), LIBRARY)
        return
    for dtype in ("float32", "float64"):
        for size in (*lengths(comm.size), 20_001 * comm.size + 3):
            _check_allreduce(comm, LIBRARY, dtype, size)


def _check_allreduce(comm: Communicator, name: str, dtype: str, size: int) -> None:
    """Sum thrice, since a collective that shares memory takes two windows in turn."""
    arena = Arena(comm)
    array = numbers(comm.rank, size, dtype)
    if name != LIBRARY and ALLREDUCES[name].in_window:
        arena.reserve(array.nbytes + 1)
        array = arena.parts[comm.rank][: array.nbytes].view(dtype)
    allreduce = make_allreduce(comm, array, name, window=arena.window, segment_bytes=64)
    assert allreduce.algorithm == name
    for turn in range(3):
        array[:] = numbers(comm.rank + turn, size, dtype)
        allreduce.start()
        allreduce.wait()
        terms = np.array([numbers(rank + turn, size, dtype) for rank in range(comm.size)])
        # p - 1 additions in some order: each errs by half a unit of the last place of a partial sum.
        tolerance = (comm.size - 1) * np.finfo(dtype).eps / 2 * np.abs(terms).sum(axis=0, dtype=np.float64)
        assert (np.abs(array - terms.sum(axis=0, dtype=np.longdouble)) <= tolerance * 1.01).all(), name
        assert len(set(comm.allgather_obj(array.tobytes()))) == 1, name
    allreduce.free()
    del array
    arena.free()


def ring_adds_chunk_k_from_rank_k_plus_1_to_rank_k(comm: Communicator) -> None:
    size = 10 * comm.size + 1
    array = numbers(comm.rank, size)
    Collective(comm, ring_allreduce(comm.size, size, comm.rank), array, segment_bytes=16)()
    for index in range(comm.size):
        start, stop = share(size, index, comm.size)
        order = [(index + 1 + turn) % comm.size for turn in range(comm.size)]
        total = numbers(order[0], size)[start:stop]
        for rank in order[1:]:
            total = total + numbers(rank, size)[start:stop]
        np.testing.assert_array_equal(array[start:stop], total)


def halves_of_the_ring_scatter_and_gather(comm: Communicator) -> None:
    for size in lengths(comm.size):
        array = np.arange(size, dtype=np.float64) + comm.rank
        start, stop = share(size, comm.rank, comm.size)
        Collective(comm, ring_reduce_scatter(comm.size, size, comm.rank), array)()
        expected = comm.size * np.arange(size) + sum(range(comm.size))
        np.testing.assert_array_equal(array[start:stop], expected[start:stop])
        array[:start] = array[stop:] = np.nan
        Collective(comm, ring_all_gather(comm.size, size, comm.rank), array)()
        np.testing.assert_array_equal(array, expected)


def collective_can_be_called_again(comm: Communicator) -> None:
    array = np.empty(100)
    collective = Collective(comm, ring_allreduce(comm.size, 100, comm.rank), array, segment_bytes=80)
    for turn in range(5):
        array[:] = comm.rank + turn
        collective()
        np.testing.assert_array_equal(array, np.full(100, sum(range(comm.size)) + turn * comm.size))


def collectives_of_different_tags_overlap(comm: Communicator) -> None:
    arrays = [np.full(50 + tag, float(comm.rank + tag)) for tag in range(3)]
    collectives = [
        Collective(comm, ring_allreduce(comm.size, array.size, comm.rank), array, tag=tag, segment_bytes=40)
        for tag, array in enumerate(arrays)
    ]
    for collective in collectives:
        collective.start()
    for _ in range(3):
        collectives[2].test()
        collectives[0].test()
    for collective in reversed(collectives):
        collective.wait()
    for tag, array in enumerate(arrays):
        np.testing.assert_array_equal(array, np.full(50 + tag, sum(range(comm.size)) + float(tag * comm.size)))


def allreduces_of_shared_memory_overlap(comm: Communicator) -> None:
    if comm.num_nodes > 1:
        return
    arrays = [np.full(50 + index, float(comm.rank + index)) for index in range(3)]
    works = [make_allreduce(comm, array, "two_shot") for array in arrays]
    for work in works:
        work.start()
    works[2].test()
    for work in reversed(works):
        work.wait()
    for index, array in enumerate(arrays):
        np.testing.assert_array_equal(array, np.full(50 + index, sum(range(comm.size)) + float(index * comm.size)))
    for work in works:
        work.free()


def sums_of_the_library_overlap(comm: Communicator) -> None:
    """With one another, and with messages of ours; all ranks start them in one order."""
    if not comm.library_name():
        return
    arrays = [np.full(50 + index, float(comm.rank + index)) for index in range(4)]
    names = [LIBRARY, "ring", LIBRARY, LIBRARY]
    works = [make_allreduce(comm, array, name) for array, name in zip(arrays, names, strict=True)]
    for turn in range(2):
        for index, array in enumerate(arrays):
            array[:] = comm.rank + index + turn
        for work in works:
            work.start()
        works[2].test()
        for work in reversed(works):
            work.wait()
        for index, array in enumerate(arrays):
            expected = float(sum(range(comm.size)) + (index + turn) * comm.size)
            np.testing.assert_array_equal(array, np.full(50 + index, expected))
    for work in works:
        work.free()
    with pytest.raises(InputError, match="must start in one order on all ranks"):
        make_allreduce(comm, arrays[0], LIBRARY, joint=False)


def long_arrays_go_through_the_cache_or_past_it(comm: Communicator) -> None:
    size = 20_001 * comm.size + 3
    for name, streams in itertools.product(("one_shot", "two_shot"), (False, True)):
        if comm.num_nodes == 1:
            array = np.arange(size, dtype=np.float32) % 97 + comm.rank
            program = ALLREDUCES[name].programs(comm.nodes, size, comm.rank)
            shared = share_memory(comm, program, array.dtype)
            shared.streams = streams
            allreduce = Collective(comm, program, array, shared=shared)
            done = {code for part in allreduce._parts for code in part._tables[0][:, 0]}
            assert (STREAM in done) == (streams and comm.size > 1)
            for turn in range(2):
                allreduce()
                expected = comm.size * (np.arange(size) % 97) + sum(range(comm.size))
                np.testing.assert_array_equal(array, expected * comm.size**turn)
            allreduce.free()


def all_ranks_agree_whether_to_pass_the_cache(comm: Communicator) -> None:
    for size in (1, 5_000, 100_000):
        shared = SharedMemory(comm, size + comm.rank, np.float32)
        found = comm.allgather_obj(shared.streams)
        assert len(set(found)) == 1
        assert size > 5_000 or shared.streams, "short windows do not tell"
        assert not shared.raised.any()
        shared.free()


def sums_go_back_to_a_window_in_the_pass_that_ends_them(comm: Communicator) -> None:
    if comm.num_nodes > 1 or comm.size < 2:
        return
    size = 10_001 * comm.size
    arena = Arena(comm)
    arena.reserve(4 * size)
    assert arena.window is not None
    array = arena.window.parts[comm.rank][: 4 * size].view(np.float32)
    allreduce = make_allreduce(comm, array, "window", window=arena.window)
    [part] = allreduce._parts
    both = part._tables[0][part._tables[0][:, 0] == REDUCE_BOTH]
    first, last = share(size, comm.rank, comm.size)
    assert sum(stop - start for _, start, stop, _, _ in both) == last - first
    array[:] = np.arange(size) % 97 + comm.rank
    comm.barrier()
    allreduce()
    np.testing.assert_array_equal(array, comm.size * (np.arange(size) % 97) + sum(range(comm.size)))
    allreduce.free()
    arena.free()


def unknown_allreduces_are_refused(comm: Communicator) -> None:
    with pytest.raises(InputError, match="no such algorithm"):
        make_allreduce(comm, np.zeros(4), "rings")
    needed = "lie in memory which ranks share. Give the window" if comm.num_nodes == 1 else "all ranks on one machine"
    with pytest.raises(InputError, match=needed):
        make_allreduce(comm, np.zeros(4), "window")


def collective_refuses_other_arrays(comm: Communicator) -> None:
    program = ring_allreduce(comm.size, 4, comm.rank)
    for array in (np.zeros((2, 2)), np.zeros(4, np.int64), np.zeros(8)[::2]):
        with pytest.raises(ValueError, match=r"flat float array|C-contiguous"):
            Collective(comm, program, array)


COLLECTIVES: list[Callable[[Communicator], None]] = [
    every_allreduce_sums_to_the_same_bits_everywhere,
    the_library_sums_to_the_same_bits_everywhere,
    sums_of_the_library_overlap,
    allreduces_of_shared_memory_overlap,
    long_arrays_go_through_the_cache_or_past_it,
    all_ranks_agree_whether_to_pass_the_cache,
    sums_go_back_to_a_window_in_the_pass_that_ends_them,
    unknown_allreduces_are_refused,
    ring_adds_chunk_k_from_rank_k_plus_1_to_rank_k,
    halves_of_the_ring_scatter_and_gather,
    collective_can_be_called_again,
    collectives_of_different_tags_overlap,
    collective_refuses_other_arrays,
]
