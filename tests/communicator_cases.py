"""What the verbs of every form of Communicator promise: functions of one, run on threads and on MPI ranks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hpdl_mpi.base.errors import HpdlError, InputError, TrainingError
from hpdl_mpi.comm import Communicator, agree, agree_all
from hpdl_mpi.comm.communicator import PIECE_BYTES

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
