"""Ranks that do not make the same calls are told so."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from hpdl_mpi.base.errors import TrainingError
from hpdl_mpi.comm import Communicator, make_allreduce
from hpdl_mpi.comm.calls import Calls, first_difference
from hpdl_mpi.comm.threads import run_threads


def history(*names: str) -> Calls:
    calls = Calls()
    for name in names:
        calls.add(name)
    return calls


def test_digest_is_that_of_the_calls_in_their_order() -> None:
    assert history("a", "b").digest == history("a", "b").digest
    assert history("a", "b").digest != history("b", "a").digest


def test_first_call_that_differs_is_named_for_each_rank() -> None:
    assert first_difference({0: history("a", "b", "c"), 3: history("a", "c")}) == "call 2: rank 0: b; rank 3: c"
    assert first_difference({0: history("a"), 1: history("a", "c")}) == "call 2: rank 0: nothing; rank 1: c"


def test_what_is_long_ago_is_forgotten_on_all_ranks_alike() -> None:
    many = [f"call {number}" for number in range(1000)]
    long_ago = {0: history("x", *many), 1: history("y", *many)}
    assert first_difference(long_ago) == "a difference before the last 256 calls"
    of_late = {0: history(*many, "x"), 1: history(*many)}
    assert first_difference(of_late) == "call 1001: rank 0: x; rank 1: nothing"


@pytest.mark.parametrize(
    "wrong", ["other label", "other size", "other dtype", "other order", "other way", "other wire"]
)
def test_checked_calls_must_be_the_same(wrong: str) -> None:
    def work(comm: Communicator) -> None:
        comm.check_calls = True
        odd = comm.rank == 1
        size = 11 if odd and wrong == "other size" else 10
        dtype = np.float64 if odd and wrong == "other dtype" else np.float32
        label = "bias" if odd and wrong == "other label" else "weights"
        way = "tree" if odd and wrong == "other way" else "ring"
        wire = "bf16" if odd and wrong == "other wire" else None
        sums = [
            make_allreduce(comm, np.ones(size, dtype), way, label=name, compression=wire) for name in (label, "totals")
        ]
        for one in reversed(sums) if odd and wrong == "other order" else sums:
            one()

    with pytest.raises(TrainingError, match=r"the same calls\. Found call \d+: rank 0: weights, 10 x float32"):
        run_threads(3, work)


@pytest.mark.parametrize(
    ("verb", "expected"),
    [
        (
            lambda comm, odd: comm.allreduce(np.ones(3, np.int64 if odd else np.float64)),
            "rank 0: allreduce (sum), 3 x float64; rank 1: allreduce (sum), 3 x int64; rank 2: allreduce (sum), 3 x",
        ),
        (
            lambda comm, odd: comm.allreduce(np.ones(3), "max" if odd else "sum"),
            "rank 0: allreduce (sum), 3 x float64; rank 1: allreduce (max), 3 x float64",
        ),
        (
            lambda comm, odd: comm.allgather(np.ones(2, "i8" if odd else "f8"), np.ones((3, 2), "i8" if odd else "f8")),
            "rank 0: allgather, 2 x float64; rank 1: allgather, 2 x int64",
        ),
        (
            lambda comm, odd: comm.bcast(np.ones(3), root=int(odd)),
            "rank 0: bcast from rank 0, 3 x float64; rank 1: bcast from rank 1, 3 x float64",
        ),
        (
            lambda comm, odd: comm.gather_obj("a", root=int(odd)),
            "rank 0: gather to rank 0; rank 1: gather to rank 1",
        ),
    ],
    ids=["dtype", "reduction", "allgather", "root", "gather"],
)
def test_checked_verbs_must_have_the_same_arguments(
    verb: Callable[[Communicator, bool], object], expected: str
) -> None:
    def work(comm: Communicator) -> None:
        comm.check_calls = True
        verb(comm, comm.rank == 1)

    with pytest.raises(TrainingError, match=r"the same calls\. Found call 1: " + re.escape(expected)):
        run_threads(3, work)


def test_groups_call_ranks_by_their_numbers_in_the_job() -> None:
    def work(comm: Communicator) -> None:
        group = comm.split(comm.rank % 2)
        if comm.rank % 2:
            group.check_calls = True
            group.allreduce(np.ones(1, np.float32 if comm.rank == 3 else np.float64))

    expected = "rank 1: allreduce (sum), 1 x float64; rank 3: allreduce (sum), 1 x float32"
    with pytest.raises(TrainingError, match=re.escape(expected)):
        run_threads(4, work)


def test_what_waits_in_a_group_names_ranks_as_in_the_job() -> None:
    def work(comm: Communicator) -> None:
        group = comm.split(comm.rank % 2)
        total = make_allreduce(group, np.ones(8, np.float32), "ring", label="gradients")
        if comm.rank == 1:
            total()
        elif comm.rank == 0:
            group.recv(np.ones(1), 1)

    with pytest.raises(TrainingError) as raised:
        run_threads(4, work)
    said = str(raised.value)
    assert re.search(r"rank 1 waits: gradients \(rank 1, round 0: .* from rank 3 ", said), said
    assert "rank 0 waits: rank 0: recv of 8 bytes from rank 2, tag 0" in said


def test_calls_are_checked_again_after_a_mismatch() -> None:
    def work(comm: Communicator) -> None:
        comm.check_calls = True
        for _ in range(2):
            with pytest.raises(TrainingError, match="the same calls"):
                comm.allreduce(np.ones(1), "max" if comm.rank else "sum")

    run_threads(2, work)


def test_calls_can_be_compared_at_the_end() -> None:
    def work(comm: Communicator) -> None:
        comm.compare_calls()
        comm.begin_collective("a sum" if comm.rank else "another sum")
        comm.compare_calls()

    with pytest.raises(TrainingError, match="rank 0: another sum; rank 1: a sum"):
        run_threads(2, work)


def test_checked_calls_that_are_the_same_go_on() -> None:
    def work(comm: Communicator) -> list[float]:
        comm.check_calls = True
        array = np.ones(10, np.float32)
        make_allreduce(comm, array, "ring", label="weights")()
        comm.barrier()
        return array.tolist()

    assert run_threads(3, work) == [[3.0] * 10] * 3
