"""What every form of Communicator promises: functions of one, run by the suites on threads and on MPI ranks."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from hpdl_mpi.base.errors import HpdlError, InputError, TrainingError
from hpdl_mpi.base.shares import share
from hpdl_mpi.comm import (
    ALLREDUCES,
    LIBRARY,
    Arena,
    Collective,
    Communicator,
    agree,
    agree_all,
    make_allreduce,
    ring_all_gather,
    ring_allreduce,
    ring_reduce_scatter,
)
from hpdl_mpi.comm.communicator import PIECE_BYTES
from hpdl_mpi.comm.shared_rounds import SharedMemory, share_memory

DTYPES = ["bool", "uint8", "int16", "int64", "float16", "float32", "float64", "complex128"]


def numbers(rank: int, size: int, dtype: str = "float32") -> np.ndarray:
    """Return numbers of both signs and many magnitudes, another set for each rank."""
    rng = np.random.default_rng([rank, size])
    return (rng.standard_normal(size) * 10.0 ** rng.integers(-3, 4, size)).astype(dtype)


def message_passes_around_the_ring(comm: Communicator) -> None:
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for dtype in DTYPES:
        for shape in [(), (0,), (5,), (2, 3, 4)]:
            sent = np.full(shape, comm.rank + 1).astype(dtype)
            received = np.zeros(shape, dtype)
            comm.sendrecv(sent, right, received, left, tag=3)
            np.testing.assert_array_equal(received, np.full(shape, left + 1).astype(dtype), strict=True)


def messages_of_one_tag_keep_their_order(comm: Communicator) -> None:
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    received = np.zeros((6, 1))
    receiving = [comm.irecv(received[i], left, tag=i % 2) for i in range(6)]
    sending = [comm.isend(np.array([float(i)]), right, tag=i % 2) for i in range(6)]
    for work in reversed(receiving + sending):
        work.wait()
    np.testing.assert_array_equal(received[:, 0], np.arange(6.0))


def tags_keep_messages_apart(comm: Communicator) -> None:
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    first, second = np.zeros(1), np.zeros(1)
    sending = [comm.isend(np.array([float(tag)]), right, tag) for tag in (1, 2)]
    comm.recv(second, left, 2)
    comm.recv(first, left, 1)
    for work in sending:
        work.wait()
    assert (first[0], second[0]) == (1.0, 2.0)


def prepared_transfer_takes_what_the_array_holds_at_each_start(comm: Communicator) -> None:
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    sent, received = np.zeros(3), np.zeros(3)
    sending, receiving = comm.send_init(sent, right, 1), comm.recv_init(received, left, 1)
    for turn in range(4):
        sent[:] = 10 * turn + comm.rank
        receiving.start()
        sending.start()
        receiving.wait()
        sending.wait()
        np.testing.assert_array_equal(received, np.full(3, 10.0 * turn + left))


def bcast_copies_from_every_root(comm: Communicator) -> None:
    for root in range(comm.size):
        array = np.full((2, 3), float(comm.rank))
        comm.bcast(array, root)
        np.testing.assert_array_equal(array, np.full((2, 3), float(root)))


def allgather_orders_by_rank(comm: Communicator) -> None:
    for shape in [(), (0,), (2, 2)]:
        out = np.zeros((comm.size, *shape), np.int32)
        comm.allgather(np.full(shape, comm.rank, np.int32), out)
        for rank in range(comm.size):
            np.testing.assert_array_equal(out[rank], np.full(shape, rank, np.int32))


def allreduce_folds_in_the_order_of_ranks(comm: Communicator) -> None:
    more_than_a_piece = PIECE_BYTES // (4 * comm.size) + 1
    for size in (0, 1, 7, more_than_a_piece):
        for op, fold in (("sum", np.add), ("max", np.maximum), ("min", np.minimum)):
            array = numbers(comm.rank, size)
            comm.allreduce(array, op)
            expected = numbers(0, size)
            for rank in range(1, comm.size):
                expected = fold(expected, numbers(rank, size))
            np.testing.assert_array_equal(array, expected, strict=True)


def allreduce_keeps_integers_exact_and_nan_visible(comm: Communicator) -> None:
    big = np.array([2**53 + 1], np.int64)
    comm.allreduce(big)
    assert big[0] == comm.size * (2**53 + 1)
    for op in ("sum", "max", "min"):
        array = np.array(np.nan if comm.rank == comm.size - 1 else 1.0)
        comm.allreduce(array, op)
        assert np.isnan(array)


def objects_travel(comm: Communicator) -> None:
    mine = {"rank": comm.rank, "text": "x" * comm.rank}
    everyone = [{"rank": rank, "text": "x" * rank} for rank in range(comm.size)]
    for root in range(comm.size):
        assert comm.bcast_obj(mine, root) == everyone[root]
        assert comm.gather_obj(mine, root) == (everyone if comm.rank == root else None)
    assert comm.allgather_obj(mine) == everyone


def split_makes_groups_that_do_not_mix(comm: Communicator) -> None:
    # Reversed keys reverse the ranks.
    part = comm.split(comm.rank % 2, key=-comm.rank)
    members = sorted(range(comm.rank % 2, comm.size, 2), reverse=True)
    assert part.allgather_obj(comm.rank) == members
    assert (part.rank, part.size) == (members.index(comm.rank), len(members))
    twin = comm.split(comm.rank % 2)
    array, twins = np.array([1.0]), np.array([2.0])
    sending = [twin.isend(twins, twin.rank, 0), part.isend(array, part.rank, 0)]
    received = np.zeros(1)
    part.recv(received, part.rank, 0)
    assert received[0] == 1.0
    twin.recv(received, twin.rank, 0)
    assert received[0] == 2.0
    for work in sending:
        work.wait()


def freed_group_leaves_the_others_alone(comm: Communicator) -> None:
    part, other = comm.split(0), comm.split(0)
    for _ in range(2):
        part.free()
    for group in (other, comm):
        assert group.allgather_obj(comm.rank) == list(range(comm.size))


def places_on_machines_are_consistent(comm: Communicator) -> None:
    places = comm.allgather_obj((comm.node, comm.node_rank, comm.node_size))
    assert {node for node, _, _ in places} == set(range(comm.num_nodes))
    for node in range(comm.num_nodes):
        here = [(rank, size) for other, rank, size in places if other == node]
        assert here == [(rank, len(here)) for rank in range(len(here))]


def arrays_that_are_not_contiguous_are_refused(comm: Communicator) -> None:
    for verb in (comm.isend, comm.irecv, comm.send_init, comm.recv_init):
        with pytest.raises(ValueError, match="C-contiguous"):
            verb(np.zeros((4, 4))[:, 1], 0)
    with pytest.raises(ValueError, match="plain numbers"):
        comm.isend(np.array([None]), 0)
    read_only = np.zeros(1)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        comm.irecv(read_only, 0)
    with pytest.raises(ValueError, match=f"no rank {comm.size}"):
        comm.isend(np.zeros(1), comm.size)


def messages_of_another_size_are_noticed(comm: Communicator) -> None:
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for sent, received in ((2, 3), (3, 2)):
        sending = comm.isend(np.zeros(sent), right, 5)
        with pytest.raises(TrainingError):
            comm.recv(np.zeros(received), left, 5)
        sending.wait()


def agree_gives_everyone_the_result_or_the_error_of_rank_0(comm: Communicator) -> None:
    assert agree(comm, lambda: comm.rank + 5) == 5

    def check() -> None:
        if comm.rank == 0:
            raise InputError("no such file", where="data.train", found="x")
        raise AssertionError("only rank 0 looks")

    with pytest.raises(HpdlError) as caught:
        agree(comm, check)
    assert type(caught.value) is InputError
    assert str(caught.value) == "data.train: no such file. Found x."


def agree_all_gives_everyone_all_results_or_the_first_error(comm: Communicator) -> None:
    assert agree_all(comm, lambda: comm.rank + 5) == [rank + 5 for rank in range(comm.size)]

    def work() -> None:
        if comm.rank >= comm.size // 2:
            raise InputError("damaged", where=f"shard {comm.rank}")

    with pytest.raises(InputError, match=f"^shard {comm.size // 2}: damaged") as caught:
        agree_all(comm, work)
    assert caught.value.shared


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
        assert size > 1 or not shared.streams, "copies of a few bytes are not worth it"
        assert not shared.raised.any()
        shared.free()


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


def work_that_is_over_stays_so(comm: Communicator) -> None:
    received = np.zeros(4)
    receiving = comm.irecv(received, (comm.rank - 1) % comm.size)
    sending = comm.isend(np.full(4, float(comm.rank)), (comm.rank + 1) % comm.size)
    while not (sending.test() and receiving.test()):
        pass
    for work in (sending, receiving):
        work.wait()
        assert work.test()
    assert (received == (comm.rank - 1) % comm.size).all()


VERBS: list[Callable[[Communicator], None]] = [
    work_that_is_over_stays_so,
    message_passes_around_the_ring,
    messages_of_one_tag_keep_their_order,
    tags_keep_messages_apart,
    prepared_transfer_takes_what_the_array_holds_at_each_start,
    bcast_copies_from_every_root,
    allgather_orders_by_rank,
    allreduce_folds_in_the_order_of_ranks,
    allreduce_keeps_integers_exact_and_nan_visible,
    objects_travel,
    split_makes_groups_that_do_not_mix,
    freed_group_leaves_the_others_alone,
    places_on_machines_are_consistent,
    arrays_that_are_not_contiguous_are_refused,
    messages_of_another_size_are_noticed,
    agree_gives_everyone_the_result_or_the_error_of_rank_0,
    agree_all_gives_everyone_all_results_or_the_first_error,
]

COLLECTIVES: list[Callable[[Communicator], None]] = [
    every_allreduce_sums_to_the_same_bits_everywhere,
    the_library_sums_to_the_same_bits_everywhere,
    sums_of_the_library_overlap,
    allreduces_of_shared_memory_overlap,
    long_arrays_go_through_the_cache_or_past_it,
    all_ranks_agree_whether_to_pass_the_cache,
    unknown_allreduces_are_refused,
    ring_adds_chunk_k_from_rank_k_plus_1_to_rank_k,
    halves_of_the_ring_scatter_and_gather,
    collective_can_be_called_again,
    collectives_of_different_tags_overlap,
    collective_refuses_other_arrays,
]
