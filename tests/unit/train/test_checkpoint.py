"""Checkpoints: whole or absent, checked when read, and never lost."""

from __future__ import annotations

import json
import resource
import signal

import h5py
import numpy as np
import pytest

from hpdl_mpi import nn, optim
from hpdl_mpi.base.errors import InputError, StorageError, TrainingError
from hpdl_mpi.comm import SingleCommunicator, run_threads
from hpdl_mpi.parallel import Replica
from hpdl_mpi.train import checkpoint

PROGRESS = {"epoch": 3, "sums": [0.1, 2.0, 1.0]}


def make_replica(width=4, optimizer=None, seed=0):
    model = nn.Sequential(nn.Linear(width), nn.ReLU(), nn.Linear(2))
    replica = Replica(model, (3,), optimizer or optim.Adam(0.1), dtype=np.float32, seed=seed)
    for number, slot in enumerate(replica.slots.values()):
        replica.layout.initialize(slot, seed=number + 10)
    return replica


def save(folder, step, replica=None, keep=2):
    replica = replica or make_replica(seed=step)
    replica.step = step
    return checkpoint.save(folder, replica, PROGRESS, SingleCommunicator(), keep=keep)


def load(path, replica=None):
    replica = replica or make_replica(seed=99)
    return checkpoint.load(path, replica), replica


def assert_equal(found, expected):
    assert found.step == expected.step
    np.testing.assert_array_equal(found.params, expected.params)
    for name in expected.slots:
        np.testing.assert_array_equal(found.slots[name], expected.slots[name])


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


def test_a_crash_before_the_rename_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    earlier = make_replica(seed=1)
    save(tmp_path, 1, earlier)
    monkeypatch.setattr("os.rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2)
    assert_equal(load(checkpoint.latest(tmp_path))[1], earlier)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000000001"]


def test_a_full_disk_is_reported_and_nothing_is_lost(tmp_path):
    earlier = make_replica(seed=1)
    save(tmp_path, 1, earlier)
    big = make_replica(width=100_000)  # 2.4 MB with its state
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"could not be written; earlier checkpoints are intact.*--resume"):
            save(tmp_path, 2, big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000000001"]
    assert_equal(load(checkpoint.latest(tmp_path))[1], earlier)


@pytest.mark.parametrize("file", ["rank-00000.h5", "manifest.json"])
@pytest.mark.parametrize("harm", ["truncate", "flip", "remove"])
def test_a_damaged_file_is_named(tmp_path, file, harm):
    path = save(tmp_path, 1) / file
    data = bytearray(path.read_bytes())
    if harm == "remove":
        path.unlink()
    elif harm == "truncate":
        path.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
    latest = path.parent
    with pytest.raises(InputError, match=rf"{file}: a damaged checkpoint"):
        load(latest)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            lambda: make_replica(width=5),
            r"another model: they differ in 0\.bias\. Found shape \[4\]; expected shape \[5\]",
        ),
        (lambda: Replica(nn.Linear(2), (3,), optim.Adam(), dtype=np.float32, seed=0), "no such parameter"),
        (lambda: make_replica(optimizer=optim.SGD(0.1, momentum=0.9)), "lacks state.*slot:velocity"),
    ],
)
def test_a_checkpoint_of_another_model_or_optimizer_is_refused(tmp_path, other, message):
    path = save(tmp_path, 1)
    with pytest.raises(InputError, match=message):
        load(path, other())


def test_another_format_is_refused(tmp_path):
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"format": 999}))
    with pytest.raises(InputError, match=r"another format\. Found 999; expected 1"):
        load(path)


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
        parts.append(
            {"name": name, "sha256": checkpoint._sha256(path / name), "slices": [["params", "0.weight", start, stop]]}
        )
    rest = manifest["files"][0]
    rest["slices"] = [entry for entry in rest["slices"] if entry[1] != "0.weight"]
    (path / "manifest.json").write_text(json.dumps(manifest | {"files": [rest, *parts]}))
    assert_equal(load(path, make_replica(seed=99, optimizer=optim.SGD(0.1)))[1], saved)


def test_ranks_that_have_drifted_apart_are_found(tmp_path):
    def run(comm):
        replica = make_replica()
        if comm.rank == 2:
            replica.params[5] += 1e-3
        with pytest.raises(TrainingError, match=r"data-parallel ranks \[2\] hold other parameters than rank 0"):
            checkpoint.save(tmp_path, replica, PROGRESS, comm, keep=2)

    run_threads(3, run)
    assert list(tmp_path.iterdir()) == []


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
    earlier = save(tmp_path, 1)
    replica = make_replica()
    replica.params[0] = np.nan
    with pytest.raises(TrainingError, match="parameters are not finite after step 2, so they are not saved"):
        save(tmp_path, 2, replica)
    assert list(tmp_path.iterdir()) == [earlier]
