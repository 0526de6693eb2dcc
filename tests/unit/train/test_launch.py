"""How a run begins on a node: threads, and who compiles first."""

from __future__ import annotations

import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import SingleCommunicator, run_threads
from hpdl_mpi.parallel import ProcessGrid
from hpdl_mpi.train import launch


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
