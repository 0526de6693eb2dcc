"""Checkpoints: whole or absent, checked when read, and never lost."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import signal

import h5py
import numpy as np
import pytest

from hpdl_mpi import nn, optim
from hpdl_mpi.base.errors import InputError, StorageError, TrainingError
from hpdl_mpi.comm import SingleCommunicator, run_threads
from hpdl_mpi.data import Transform
from hpdl_mpi.nn import LossSums
from hpdl_mpi.parallel import ProcessGrid, Replica
from hpdl_mpi.parallel.pipeline import Pipeline, make_schedule
from hpdl_mpi.train import checkpoint
from hpdl_mpi.train.manifest import seal
from hpdl_mpi.train.progress import Progress, Recipe

RECIPE = Recipe(
    seed=0,
    global_batch_size=4,
    shuffle="block",
    dtype="float64",
    slots=["velocity"],
    inputs="x",
    targets="y",
    transform=Transform(mean=(0.5, 1.5)),
    target_transform=Transform(),
)
PROGRESS = Progress(RECIPE, "data", epoch=3, sums=LossSums(0.1, 2.0, 1.0))


def make_replica(width=4, optimizer=None, seed=0):
    model = nn.Sequential(nn.Linear(width), nn.ReLU(), nn.Linear(2))
    replica = Replica(model, (3,), optimizer or optim.Adam(0.1), dtype=np.float32, seed=seed)
    for number, slot in enumerate(replica.slots.values()):
        replica.layout.initialize(slot, seed=number + 10)
    return replica


def save(folder, step, replica=None, keep=2):
    replica = replica or make_replica(seed=step)
    replica.step = step
    return checkpoint.save(folder, replica, PROGRESS, grid_of(SingleCommunicator()), keep=keep)


def grid_of(comm, pp=1):
    return ProcessGrid(comm, {"pp": pp, "dp": comm.size // pp})


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


HDF5_FULL = """Disable slist on flush dest failure failed (file write failed: time = Sun Nov 22 20:50:19 2026
, filename = 'rank-00000.h5', file descriptor = 3, errno = 28, error message = 'No space left on device', buf = 0x5)"""


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError(HDF5_FULL)], ids=type)
def test_a_failed_write_is_told_in_the_words_of_the_system(tmp_path, monkeypatch, error):
    monkeypatch.setattr(checkpoint, "_write_slices", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(StorageError, match=r"Found No space left on device\. Make room"):
        save(tmp_path, 1)


def rewrite_manifest(path, **changes):
    file = path / "manifest.json"
    manifest = {key: value for key, value in (json.loads(file.read_text()) | changes).items() if value is not None}
    manifest.pop("sha256")
    file.write_bytes(seal(manifest))


@pytest.mark.parametrize(
    "text", ["[]", "{}", "null", "3", '{"format": "1"}', "[" * 10_000, b"\xff", "", '{"format": 1}']
)
def test_a_manifest_of_something_else_is_damaged(tmp_path, text):
    path = save(tmp_path, 1)
    (path / "manifest.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=r"manifest\.json: a damaged checkpoint.* Remove the folder .*step-0000000001"):
        load(path)


FILE = {"name": "rank-00000.h5", "sha256": "", "slices": []}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        *(
            (key, None, f"{key}: missing")
            for key in ("step", "dtype", "input_shape", "parameters", "files", "progress")
        ),
        ("step", "7", "step: input should be a valid integer; found '7'"),
        ("step", -1, "step: input should be greater than or equal to 0"),
        ("dtype", "object", "dtype: input should be 'float32' or 'float64'"),
        ("input_shape", [0], r"input_shape\.0: input should be greater"),
        ("input_shape", 3, "input_shape: input should be a valid array"),
        ("parameters", [], "parameters: input should be an object"),
        ("parameters", {"0.weight": "big"}, r"parameters\.0\.weight: input should be a valid array"),
        ("files", {}, "files: input should be a valid array"),
        ("files", [3], r"files\.0: input should be an object"),
        ("files", [FILE | {"sha256": 3}], r"files\.0\.sha256: input should be a valid string"),
        ("files", [FILE | {"slices": [["params", "0.weight"]]}], r"files\.0\.slices\.0\.2: missing"),
        (
            "files",
            [FILE | {"slices": [["params", "0.weight", -1, 2]]}],
            r"files\.0\.slices\.0\.2: input should be greater",
        ),
        *(
            ("files", [FILE | {"name": name}], r"files\.0\.name: string should match pattern")
            for name in ("../rank-00000.h5", "/etc/passwd", "..", "", "a/b.h5", "rank-00000.h5\n")
        ),
        ("progress", [], "progress: input should be an object"),
        ("progress", {}, "progress: recipe is missing"),
        ("progress", PROGRESS.to_dict() | {"epoch": "last"}, r"progress\.epoch: input should be a valid integer"),
        ("progress", PROGRESS.to_dict() | {"sums": [1.0]}, r"progress\.sums\.1: missing"),
    ],
)
def test_a_manifest_with_a_bad_field_is_damaged_and_the_field_is_named(tmp_path, key, value, message):
    path = save(tmp_path, 1)
    rewrite_manifest(path, **{key: value})
    with pytest.raises(InputError, match=rf"manifest\.json: a damaged checkpoint\. Found {message}") as caught:
        load(path)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "start", "stop"),
    [("2.bias", 0, 3), ("2.bias", 1, 2), ("2.bias", 2, 1), ("0.bias", 0, 2**60)],
    ids=["beyond the end", "a gap", "backwards", "far too large"],
)
def test_slices_outside_their_parameter_are_refused(tmp_path, name, start, stop):
    path = save(tmp_path, 1)
    files = json.loads((path / "manifest.json").read_text())["files"]
    for entry in files[0]["slices"]:
        if entry[:2] == ["params", name]:
            entry[2:] = [start, stop]
    rewrite_manifest(path, files=files)
    with pytest.raises(
        InputError, match=rf"rank-00000\.h5: a damaged checkpoint\. Found params of {name} from {start}"
    ):
        load(path)


def rewrite_files(path, files):
    """Let the manifest say `files`, with the checksum that the first one has now."""
    files[0]["sha256"] = hashlib.sha256((path / files[0]["name"]).read_bytes()).hexdigest()
    rewrite_manifest(path, files=files)


def test_the_same_slice_twice_does_not_stand_in_for_another(tmp_path):
    path = save(tmp_path, 1)
    with h5py.File(path / "rank-00000.h5", "a") as file:
        half = file["params/0.weight/0"][:6]
        del file["params/0.weight/0"]
        file["params/0.weight/0"] = half
    files = json.loads((path / "manifest.json").read_text())["files"]
    place = files[0]["slices"].index(["params", "0.weight", 0, 12])
    files[0]["slices"][place : place + 1] = [["params", "0.weight", 0, 6]] * 2
    rewrite_files(path, files)
    with pytest.raises(InputError, match=r"a damaged checkpoint\. Found params of 0\.weight from 0 to 6"):
        load(path)


@pytest.mark.parametrize("content", ["absent", "group", "longer", "texts", "external", "link", "virtual"])
def test_a_file_whose_arrays_are_not_what_the_manifest_says_is_damaged(tmp_path, content):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = np.zeros(4, np.float32)
    path = save(tmp_path / "run", 1)
    with h5py.File(path / "rank-00000.h5", "a") as file:
        del file["params/0.bias/0"]
        group = file["params/0.bias"]
        if content == "group":
            group.create_group("0")
        elif content == "longer":
            group.create_dataset("0", (2**50,), np.float32, chunks=(1024,))
        elif content == "texts":
            group["0"] = np.array([b"text"] * 4)
        elif content == "external":
            group.create_dataset("0", (4,), np.float32, external=[(os.fspath(secret), 0, 16)])
        elif content == "link":
            group["0"] = h5py.ExternalLink(os.fspath(secret), "x")
        elif content == "virtual":
            layout = h5py.VirtualLayout((4,), np.float32)
            layout[:] = h5py.VirtualSource(os.fspath(secret), "x", (4,))
            group.create_virtual_dataset("0", layout)
    files = json.loads((path / "manifest.json").read_text())["files"]
    rewrite_files(path, files)
    with pytest.raises(InputError, match=r"rank-00000\.h5: a damaged checkpoint"):
        load(path)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            lambda: make_replica(width=5),
            r"another model: they differ in 0\.bias\. Found shape \(4,\); expected shape \(5,\)",
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
    rewrite_manifest(path, format=999, files="elsewhere")
    with pytest.raises(InputError, match=r"another format\. Found 999; expected 1"):
        load(path)


@pytest.mark.parametrize("key", ["step", "epoch", "offset"])
def test_a_manifest_with_another_number_is_damaged(tmp_path, key):
    path = save(tmp_path, 7)
    text, count = re.subn(rf'"{key}": (\d)', rf'"{key}": 1\1', (path / "manifest.json").read_text())
    assert count == 1
    (path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="Found another checksum than its own"):
        load(path)


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
        parts.append(
            {"name": name, "sha256": checkpoint._sha256(path / name), "slices": [["params", "0.weight", start, stop]]}
        )
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

    def fail_on_one(aside, replica, rank):
        if rank == 1:
            raise OSError(28, "No space left on device")
        return store(aside, replica, rank)

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
        with pytest.raises(TrainingError, match=r"ranks \[2\] hold other parameters than those they are"):
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
