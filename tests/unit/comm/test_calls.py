"""Ranks that do not make the same calls are told so."""

from __future__ import annotations

import numpy as np
import pytest

from hpdl_mpi.base.errors import TrainingError
from hpdl_mpi.comm import Communicator, make_allreduce
from hpdl_mpi.comm.communicator import Calls, first_difference
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
    assert first_difference([history("a", "b", "c"), history("a", "c")]) == "call 2: rank 0: b; rank 1: c"
    assert first_difference([history("a"), history("a", "c")]) == "call 2: rank 0: nothing; rank 1: c"


def test_what_is_long_ago_is_forgotten_on_all_ranks_alike() -> None:
    many = [f"call {number}" for number in range(1000)]
    assert first_difference([history("x", *many), history("y", *many)]) == "a difference before the last 256 calls"
    assert first_difference([history(*many, "x"), history(*many)]) == "call 1001: rank 0: x; rank 1: nothing"


@pytest.mark.parametrize("wrong", ["other label", "other size", "other dtype", "other order"])
def test_checked_calls_must_be_the_same(wrong: str) -> None:
    def work(comm: Communicator) -> None:
        comm.check_calls = True
        odd = comm.rank == 1
        size = 11 if odd and wrong == "other size" else 10
        dtype = np.float64 if odd and wrong == "other dtype" else np.float32
        label = "bias" if odd and wrong == "other label" else "weights"
        sums = [make_allreduce(comm, np.ones(size, dtype), "ring", label=name) for name in (label, "totals")]
        for one in reversed(sums) if odd and wrong == "other order" else sums:
            one()

    with pytest.raises(TrainingError, match=r"the same calls\. Found call \d+: rank 0: weights, 10 x float32"):
        run_threads(3, work)


def test_checked_calls_that_are_the_same_go_on() -> None:
    def work(comm: Communicator) -> list[float]:
        comm.check_calls = True
        array = np.ones(10, np.float32)
        make_allreduce(comm, array, "ring", label="weights")()
        comm.barrier()
        return array.tolist()

    assert run_threads(3, work) == [[3.0] * 10] * 3
