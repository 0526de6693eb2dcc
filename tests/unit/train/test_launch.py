"""How a run begins on a node: threads, and who compiles first."""

from __future__ import annotations

import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import SingleCommunicator, run_threads
from hpdl_mpi.parallel import ProcessGrid
from hpdl_mpi.train import Parallel, launch
from hpdl_mpi.train.restore import require_same_call
from tests.unit.train.conftest import make_trainer


@pytest.fixture
def chosen(monkeypatch):
    """Collect the thread counts that ranks set, instead of setting them."""
    counts = []
    monkeypatch.setattr(launch, "set_threads", counts.append)
    return counts


def start(comm, monkeypatch, cores, wanted=None, most=64, processes=True, **environ):
    """Start the threads of a rank, which stands for a process unless `processes` is false."""
    monkeypatch.setattr(comm, "shares_process", not processes)
    monkeypatch.setattr(launch, "available_cores", lambda: set(range(cores)))
    monkeypatch.setattr(launch, "max_threads", lambda: most)
    return launch.start_threads(comm, wanted, environ)


@pytest.mark.parametrize(
    ("cores", "environ", "expected"),
    [
        (8, {}, 8),
        (8, {"SLURM_CPUS_PER_TASK": "3"}, 3),
        (2, {"SLURM_CPUS_PER_TASK": "64"}, 2),
        (8, {"SLURM_CPUS_PER_TASK": ""}, 8),
        (8, {"SLURM_CPUS_PER_TASK": "some"}, 8),
    ],
)
def test_one_rank_takes_its_cores_or_its_allocation(monkeypatch, chosen, cores, environ, expected):
    assert start(SingleCommunicator(), monkeypatch, cores, **environ) == expected
    assert chosen == [expected]


def test_what_numba_was_told_is_not_exceeded(monkeypatch, chosen):
    assert start(SingleCommunicator(), monkeypatch, cores=8, most=1) == 1


@pytest.mark.parametrize(
    ("num_ranks", "cores", "environ", "expected"),
    [(4, 8, {}, 2), (3, 8, {}, 2), (4, 2, {}, 1), (4, 8, {"SLURM_CPUS_PER_TASK": "8"}, 2)],
)
def test_unbound_ranks_share_the_cores_of_their_node(monkeypatch, chosen, num_ranks, cores, environ, expected):
    results = run_threads(num_ranks, lambda comm: start(comm, monkeypatch, cores, **environ))
    assert results == [expected] * num_ranks


def test_ranks_of_unequal_nodes_take_the_same_number(monkeypatch, chosen):
    results = run_threads(4, lambda comm: start(comm, monkeypatch, 6), nodes=[0, 0, 0, 1])
    assert results == [2, 2, 2, 2]


def test_bound_ranks_keep_the_cores_that_they_are_bound_to(monkeypatch, chosen):
    def run(comm):
        monkeypatch.setattr(comm, "shares_process", False)
        comm.barrier()
        return launch.start_threads(comm, None, {})

    bound = {}
    monkeypatch.setattr(launch, "max_threads", lambda: 2)
    monkeypatch.setattr(
        launch, "available_cores", lambda: bound.setdefault(len(bound), {2 * len(bound), 2 * len(bound) + 1})
    )
    assert run_threads(3, run) == [2, 2, 2]


def test_what_the_job_says_counts(monkeypatch, chosen):
    assert start(SingleCommunicator(), monkeypatch, 8, wanted=5) == 5


def test_ranks_that_share_a_process_take_one_thread_each_and_no_more(monkeypatch, chosen):
    assert run_threads(2, lambda comm: comm.shares_process) == [True, True]
    assert not SingleCommunicator().shares_process
    for wanted in (None, 1):
        assert run_threads(2, lambda comm, wanted=wanted: start(comm, monkeypatch, 8, wanted, processes=False)) == [
            1,
            1,
        ]
    with pytest.raises(InputError, match=r"parallel\.threads: out of range\. Found 2; expected 1, since the ranks are"):
        run_threads(2, lambda comm: start(comm, monkeypatch, 8, 2, processes=False))


def test_the_first_rank_of_each_node_goes_before_the_others():
    order = []

    def run(comm):
        grid = ProcessGrid(comm, {"pp": 1, "dp": comm.size})
        return launch.first_on_node(grid, lambda: order.append(comm.rank))

    run_threads(5, run, nodes=[0, 0, 1, 1, 1])
    assert set(order[:2]) == {0, 2}
    assert sorted(order) == [0, 1, 2, 3, 4]


def test_a_nodes_first_rank_goes_with_its_pipeline():
    order = []

    def run(comm):
        grid = ProcessGrid(comm, {"pp": 2, "dp": 3})
        return launch.first_on_node(grid, lambda: order.append(comm.rank))

    run_threads(6, run)
    assert set(order[:2]) == {0, 3}
    assert sorted(order) == list(range(6))


def refusal(settings):
    """Return what ranks are told that give one of these settings each; all are told the same."""

    def run(comm):
        with pytest.raises(InputError) as caught:
            require_same_call(comm, settings[comm.rank])
        return str(caught.value)

    (said,) = {*run_threads(len(settings), run)}
    return said


def test_ranks_that_differ_in_whether_they_check_calls_are_refused_before_their_first_one():
    def run(comm):
        parallel = Parallel(threads=1, check_calls=comm.rank == 1)
        with pytest.raises(InputError) as caught:
            make_trainer(comm, parallel=parallel)
        return str(caught.value), caught.value.exit_code

    said = (
        "Trainer: parallel: ranks train in different ways. Found parallel.check_calls = True on rank 1; expected "
        "parallel.check_calls = False, as on rank 0. Call Trainer alike on every rank; rank 0 alone will write the run "
        "folder."
    )
    assert run_threads(2, run) == [(said, 2)] * 2


def test_keys_in_which_sections_differ_are_named_and_no_others():
    said = refusal([{"parallel": Parallel()}, {"parallel": Parallel(pp=2, bucket_cap_mb=1.5)}])
    assert "Found parallel.pp = 2, parallel.bucket_cap_mb = 1.5 on rank 1;" in said
    assert "expected parallel.pp = 1, parallel.bucket_cap_mb = 25.0, as on rank 0" in said
    assert "threads" not in said


def test_of_an_optimizer_its_name_and_keys_are_named():
    mine, theirs = (("SGD", {"lr": 0.1, "momentum": 0.9}), ("SGD", {"lr": 0.2, "momentum": 0.9}))
    assert "Found optimizer.lr = 0.2 on rank 2; expected optimizer.lr = 0.1, as on rank 0" in refusal(
        [{"optimizer": mine}, {"optimizer": mine}, {"optimizer": theirs}]
    )
    said = refusal([{"optimizer": mine}, {"optimizer": ("Adam", {"lr": 0.1})}])
    assert "Found optimizer.name = 'Adam', optimizer.momentum = None on rank 1" in said
    assert "expected optimizer.name = 'SGD', optimizer.momentum = 0.9, as on rank 0" in said


def test_plain_values_that_differ_are_named_as_they_are():
    assert "fit: epochs: ranks train in different ways. Found None on rank 1; expected 3, as on rank 0" in refusal(
        [{"epochs": 3}, {"epochs": None}]
    )
