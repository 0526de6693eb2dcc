"""A small model whose checkpoints tests write and harm."""

from __future__ import annotations

import json

import numpy as np

from hpdl_mpi import nn, optim
from hpdl_mpi.comm import SingleCommunicator
from hpdl_mpi.data import Transform
from hpdl_mpi.nn import LossSums
from hpdl_mpi.parallel import ProcessGrid, Replica
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


def rewrite_manifest(path, **changes):
    file = path / "manifest.json"
    manifest = {key: value for key, value in (json.loads(file.read_text()) | changes).items() if value is not None}
    manifest.pop("sha256")
    file.write_bytes(seal(manifest))
