"""Which ranks have their gradients in memory that they share."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from hpdl_mpi import nn, optim
from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import Communicator, Window, run_threads
from hpdl_mpi.comm.threads import ThreadCommunicator, _ThreadWindow
from hpdl_mpi.data import Batch
from hpdl_mpi.parallel import ProcessGrid, Replica, TrainingStep, buckets
from hpdl_mpi.parallel.pipeline import Pipeline, make_schedule


def algorithms(comm: Communicator, **settings: str) -> set[str]:
    """Return what sums the gradients of a step with these settings."""
    replica = Replica(nn.Linear(3), (4,), optim.SGD(0.1), dtype="float32", seed=0)
    before = replica.params.copy()
    step = TrainingStep(replica, nn.CrossEntropy(), ProcessGrid(comm, {"pp": 1, "dp": comm.size}), **settings)
    np.testing.assert_array_equal(replica.params, before)
    assert not replica.grads.any()
    assert step.lacks_memory == (comm.shareable_bytes() == 0)
    step.free()
    return {*step.algorithms}


@pytest.mark.parametrize(
    ("nodes", "settings", "expected"),
    [
        ((0, 0, 0), {}, {"window"}),
        ((0, 0, 0), {"compression": "bf16"}, {"window"}),
        ((0, 0, 0), {"algorithm": "ring"}, {"ring"}),
        ((0, 0, 1), {}, {"recursive_doubling"}),
        ((0, 0, 1, 1), {}, {"recursive_doubling"}),
        ((0, 1, 2), {}, {"recursive_doubling"}),
        ((0,), {}, set()),
    ],
)
def test_ranks_of_one_machine_share_gradients_if_nothing_else_is_asked_for(nodes, settings, expected):
    found = run_threads(len(nodes), lambda comm: algorithms(comm, shared_memory="auto", **settings), nodes=nodes)
    assert found == [expected] * len(nodes)


def test_where_memory_is_short_they_do_not_unless_they_were_to(monkeypatch):
    monkeypatch.setattr(ThreadCommunicator, "shareable_bytes", lambda self: 0)
    assert run_threads(2, lambda comm: algorithms(comm, shared_memory="auto")) == [{"ring"}] * 2
    with pytest.raises(InputError, match=r"/dev/shm: too little memory that ranks can share.*--shm-size"):
        run_threads(2, lambda comm: algorithms(comm, shared_memory="gradients"))


def test_a_stage_that_lacks_memory_is_told_of_on_all_ranks_of_a_pipeline(monkeypatch):
    monkeypatch.setattr(ThreadCommunicator, "shareable_bytes", lambda self: 0 if 3 in self.world_ranks else 1 << 30)

    def work(comm: Communicator) -> tuple[set[str], bool]:
        grid = ProcessGrid(comm, {"pp": 2, "dp": 2})
        schedule = make_schedule("1f1b", num_ranks=2, num_microbatches=2)
        model = nn.Sequential(nn.Linear(4), nn.Linear(3))
        pipeline = Pipeline(grid.axis("pp"), schedule, cuts=(1,))
        replica = Replica(model, (4,), optim.SGD(0.1), dtype="float32", seed=0, pipeline=pipeline)
        step = TrainingStep(replica, nn.CrossEntropy(), grid, shared_memory="auto")
        step.free()
        return {*step.algorithms}, step.lacks_memory

    assert run_threads(4, work) == [({"window", "ring"}, True)] * 4


def test_buckets_in_windows_are_called_by_their_own_sizes():
    def check(comm: Communicator) -> None:
        model = nn.Sequential(nn.Linear(3), nn.Linear(5))
        replica = Replica(model, (4,), optim.SGD(0.1), dtype="float32", seed=0)
        step = TrainingStep(
            replica,
            nn.CrossEntropy(),
            ProcessGrid(comm, {"pp": 1, "dp": 2}),
            shared_memory="gradients",
            bucket_bytes=1,
        )
        step(Batch(np.ones((2, 4), np.float32), np.arange(2), np.arange(2), global_size=4, offset=0), epoch=0, lr=0.1)
        step.free()
        slices = replica.buckets(1)
        assert len(slices) == 4
        sizes = [stop - start for start, stop in slices]
        said = [f"gradients, bucket {number}, {size} x float32, window" for number, size in enumerate(sizes)]
        assert [what for what in comm.calls.latest if what.startswith("gradients")] == said

    run_threads(2, check)


@pytest.mark.parametrize("fails", ["in the second bucket", "for the second window"])
def test_a_step_that_cannot_be_made_gives_back_what_it_has_made(fails, monkeypatch):
    """The first window is that of the gradients; each bucket takes one more."""
    made: list[Window] = []
    freed: list[Window] = []
    share, free = ThreadCommunicator.share, _ThreadWindow.free

    def count(comm, nbytes):
        if fails == "for the second window" and len(made) >= 2 * comm.size:
            raise InputError("no window")
        made.append(share(comm, nbytes))
        return made[-1]

    def note(window):
        freed.append(window)
        free(window)

    def refuse(*arguments):
        raise InputError("cannot be", shared=True)

    monkeypatch.setattr(ThreadCommunicator, "share", count)
    monkeypatch.setattr(_ThreadWindow, "free", note)
    if fails == "in the second bucket":
        monkeypatch.setattr(buckets, "shifted", lambda program, start: program if start == 0 else refuse())

    def work(comm: Communicator) -> None:
        replica = Replica(nn.Sequential(nn.Linear(3), nn.Linear(5)), (4,), optim.SGD(0.1), dtype="float32", seed=0)
        grid = ProcessGrid(comm, {"pp": 1, "dp": comm.size})
        with pytest.raises(InputError):
            TrainingStep(replica, nn.CrossEntropy(), grid, shared_memory="gradients", bucket_bytes=1)

    run_threads(2, work)
    assert made
    assert {*map(id, made)} == {*map(id, freed)}


def test_buckets_without_windows_go_by_messages_unless_they_were_to_have_some(monkeypatch):
    """The gradients get theirs, and one bucket."""
    share, counts = ThreadCommunicator.share, [0, 0]

    def count(comm, nbytes):
        counts[comm.rank] += 1
        if counts[comm.rank] > 2:
            raise InputError("no window")
        return share(comm, nbytes)

    monkeypatch.setattr(ThreadCommunicator, "share", count)

    def work(comm: Communicator, shared_memory: str = "auto") -> tuple[set[str], bool]:
        replica = Replica(nn.Sequential(nn.Linear(3), nn.Linear(5)), (4,), optim.SGD(0.1), dtype="float32", seed=0)
        grid = ProcessGrid(comm, {"pp": 1, "dp": 2})
        step = TrainingStep(replica, nn.CrossEntropy(), grid, shared_memory=shared_memory, bucket_bytes=1)
        step(Batch(np.ones((2, 4), np.float32), np.arange(2), np.arange(2), global_size=4, offset=0), epoch=0, lr=0.1)
        return {*step.algorithms}, step.lacks_memory

    assert run_threads(2, work) == [({"ring"}, True)] * 2
    counts[:] = 0, 0
    with pytest.raises(InputError, match=r"no window\. Have fewer buckets \(parallel.bucket_cap_mb\), "):
        run_threads(2, partial(work, shared_memory="gradients"))
