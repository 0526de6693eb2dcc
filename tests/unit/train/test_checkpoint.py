"""Checkpoints: whole or absent, and never lost."""

from __future__ import annotations

import json
import resource
import signal

import h5py
import numpy as np
import pytest

from hpdl_mpi import nn, optim
from hpdl_mpi.base.errors import StorageError, TrainingError
from hpdl_mpi.comm import run_threads
from hpdl_mpi.parallel import Replica
from hpdl_mpi.parallel.pipeline import Pipeline, make_schedule
from hpdl_mpi.train import checkpoint
from hpdl_mpi.train.slices import sha256
from tests.checkpoint_cases import PROGRESS, assert_equal, grid_of, load, make_replica, rewrite_manifest, save

HDF5_FULL = """Disable slist on flush dest failure failed (file write failed: time = Sun Nov 22 20:50:19 2026
, filename = 'rank-00000.h5', file descriptor = 3, errno = 28, error message = 'No space left on device', buf = 0x5)"""


def test_what_is_saved_is_loaded(tmp_path):
    saved = make_replica(seed=1)
    progress, loaded = load(save(tmp_path, 7, saved))
    assert progress == PROGRESS
    assert_equal(loaded, saved)


def test_the_latest_are_kept(tmp_path):
    for step in (1, 2, 10):
        save(tmp_path, step, keep=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-0000000002", "step-0000000010"]
    assert checkpoint.latest(tmp_path).name == "step-0000000010"


def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "step-0000000002").mkdir()
    (tmp_path / ".step-0000000003.part").mkdir()
    assert checkpoint.latest(tmp_path).name == "step-0000000001"


def test_what_a_killed_process_left_is_swept(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "step-0000000002").mkdir()
    (tmp_path / ".step-0000000003.part").mkdir()
    (tmp_path / ".step-0000000003.part" / "manifest.json").touch()
    checkpoint.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000000001"]


def test_a_checkpoint_that_cannot_be_removed_whole_is_none(tmp_path, monkeypatch):
    save(tmp_path, 1)
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    save(tmp_path, 2, keep=1)
    assert (tmp_path / "step-0000000001").exists()
    (tmp_path / "step-0000000002" / "manifest.json").unlink()
    assert checkpoint.latest(tmp_path) is None


def test_a_crash_before_the_rename_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    earlier = make_replica(seed=1)
    save(tmp_path, 1, earlier)
    monkeypatch.setattr("os.rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2)
    assert_equal(load(checkpoint.latest(tmp_path))[1], earlier)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000000001"]


@pytest.mark.parametrize("limit", [500_000, 100], ids=["we write", "HDF5 writes"])
def test_a_full_disk_is_reported_and_nothing_is_lost(tmp_path, limit):
    earlier = make_replica(seed=1)
    save(tmp_path, 1, earlier)
    big = make_replica(width=100_000)  # 2.4 MB with its state
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"earlier checkpoints are intact\. Found File too large\. .*--resume"):
            save(tmp_path, 2, big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000000001"]
    assert_equal(load(checkpoint.latest(tmp_path))[1], earlier)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError(HDF5_FULL)], ids=type)
def test_a_failed_write_is_told_in_the_words_of_the_system(tmp_path, monkeypatch, error):
    monkeypatch.setattr(checkpoint, "write_slices", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(StorageError, match=r"Found No space left on device\. Make room"):
        save(tmp_path, 1)


def test_what_is_left_of_a_removed_checkpoint_is_no_obstacle(tmp_path):
    (tmp_path / "step-0000000001" / "rank-00000.h5").mkdir(parents=True)
    save(tmp_path, 1)
    assert checkpoint.latest(tmp_path).name == "step-0000000001"


def test_slices_of_several_files_are_put_together(tmp_path):
    """What other grids write: each file holds a part of a parameter."""
    saved = make_replica(seed=1, optimizer=optim.SGD(0.1))
    path = save(tmp_path, 1, saved)
    manifest = json.loads((path / "manifest.json").read_text())
    with h5py.File(path / "rank-00000.h5") as file:
        weight = file["params/0.weight/0"][()]
    parts = []
    for rank, (start, stop) in enumerate([(0, 5), (5, 12)]):
        name = f"part-{rank}.h5"
        with h5py.File(path / name, "w") as file:
            file[f"params/0.weight/{start}"] = weight[start:stop]
        parts.append({"name": name, "sha256": sha256(path / name), "slices": [["params", "0.weight", start, stop]]})
    rest = manifest["files"][0]
    rest["slices"] = [entry for entry in rest["slices"] if entry[1] != "0.weight"]
    rewrite_manifest(path, files=[rest, *parts])
    assert_equal(load(path, make_replica(seed=99, optimizer=optim.SGD(0.1)))[1], saved)


def test_a_checkpoint_of_one_grid_loads_on_any_other(tmp_path):
    """Grids of one, two and four stages, some with two pipelines; the tied weight is written once."""

    def part(comm, pp, chunks, cuts, seed):
        grid = grid_of(comm, pp)
        schedule = make_schedule("interleaved" if chunks > 1 else "1f1b", pp, 2, chunks)
        pipeline = Pipeline(grid.axis("pp"), schedule, cuts)
        model = nn.Sequential(nn.Linear(3), nn.Tanh(), nn.Linear(3), nn.Linear(2)).tie("2.weight", to="0.weight")
        replica = Replica(model, (3,), optim.Adam(0.1), dtype=np.float32, seed=seed, pipeline=pipeline)
        for number, slot in enumerate(replica.slots.values()):
            replica.layout.initialize(slot, seed=seed + number + 10)
        return replica, grid

    def write(comm, pp, chunks, cuts):
        replica, grid = part(comm, pp, chunks, cuts, seed=1)
        replica.step = comm.size * 10 + pp
        return checkpoint.save(tmp_path, replica, PROGRESS, grid, keep=9), checkpoint.digest(replica)

    def read(comm, path, pp, chunks, cuts):
        replica, _ = part(comm, pp, chunks, cuts, seed=99)
        expected, _ = part(comm, pp, chunks, cuts, seed=1)
        assert checkpoint.load(path, replica) == PROGRESS
        np.testing.assert_array_equal(replica.params, expected.params)
        for name, slot in replica.slots.items():
            np.testing.assert_array_equal(slot, expected.slots[name])
        return checkpoint.digest(replica)

    grids = [(1, 1, 1, ()), (2, 2, 1, (2,)), (4, 2, 1, (1,)), (2, 2, 2, (1, 2, 3)), (4, 4, 1, (1, 2, 3))]
    digests = set()
    for num_ranks, *grid in grids:
        outcomes = run_threads(num_ranks, lambda comm, grid=grid: write(comm, *grid))
        path = outcomes[0][0]
        files = json.loads((path / "manifest.json").read_text())["files"]
        assert len(files) == grid[0]
        assert sum(name == "0.weight" for file in files for _, name, _, _ in file["slices"]) == 3  # and two slots
        digests |= {digest for _, digest in outcomes}
        for readers, *other in grids:
            found = run_threads(readers, lambda comm, path=path, other=other: read(comm, path, *other))
            digests |= set(found)
    assert len(digests) == 1


def test_a_rank_that_cannot_write_fails_all_and_leaves_nothing(tmp_path, monkeypatch):
    store = checkpoint._store

    def fail_on_one(aside, replica, rank, index):
        if rank == 1:
            raise OSError(28, "No space left on device")
        return store(aside, replica, rank, index)

    monkeypatch.setattr(checkpoint, "_store", fail_on_one)

    def run(comm):
        pipeline = Pipeline(comm, make_schedule("1f1b", 2, 1), (1,))
        model = nn.Sequential(nn.Linear(4), nn.Linear(2))
        replica = Replica(model, (3,), optim.SGD(0.1), dtype=np.float32, seed=0, pipeline=pipeline)
        with pytest.raises(StorageError, match=r"Found No space left on device\. Make room") as caught:
            checkpoint.save(tmp_path, replica, PROGRESS, grid_of(comm, 2), keep=2)
        assert caught.value.shared

    run_threads(2, run)
    assert list(tmp_path.iterdir()) == []


def test_ranks_that_have_drifted_apart_are_found(tmp_path):
    def run(comm):
        replica = make_replica()
        if comm.rank == 2:
            replica.params[5] += 1e-3
        with pytest.raises(TrainingError, match=r"ranks \[2\] hold other parameters or statistics than"):
            checkpoint.save(tmp_path, replica, PROGRESS, grid_of(comm), keep=2)

    run_threads(3, run)
    assert list(tmp_path.iterdir()) == []


def test_copies_of_a_tied_parameter_that_have_drifted_apart_are_found(tmp_path):
    def run(comm):
        pipeline = Pipeline(comm, make_schedule("1f1b", 2, 1), (1,))
        model = nn.Sequential(nn.Linear(3), nn.Linear(3)).tie("1.weight", to="0.weight")
        replica = Replica(model, (3,), optim.SGD(0.1), dtype=np.float32, seed=0, pipeline=pipeline)
        checkpoint.save(tmp_path, replica, PROGRESS, grid_of(comm, 2), keep=2)
        replica.step = 1
        if comm.rank == 1:
            replica.layout.views(replica.params)["0.weight"][0, 0] += 1e-3
        with pytest.raises(TrainingError, match=r"ranks \[1\] hold other parameters"):
            checkpoint.save(tmp_path, replica, PROGRESS, grid_of(comm, 2), keep=2)

    run_threads(2, run)


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
    earlier = save(tmp_path, 1)
    replica = make_replica()
    replica.params[0] = np.nan
    with pytest.raises(TrainingError, match="parameters are not finite after step 2, so they are not saved"):
        save(tmp_path, 2, replica)
    assert list(tmp_path.iterdir()) == [earlier]
