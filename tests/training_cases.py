"""Small datasets and models that tests of training share, whatever the ranks are."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpdl_mpi import nn, optim
from hpdl_mpi.comm import Communicator
from hpdl_mpi.data import Transform
from hpdl_mpi.train import Parallel, Trainer

NUM_SAMPLES = 50
CLASSES = 5


def write_images(path: Path, num_samples: int = NUM_SAMPLES, seed: int = 0) -> Path:
    """Write 6 x 6 grey images whose bright column tells their class, in chunks of 8 samples."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, num_samples)
    images = rng.integers(0, 100, (num_samples, 6, 6, 1))
    images[np.arange(num_samples), :, labels] += 100
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=images.astype(np.uint8), chunks=(min(8, num_samples), 6, 6, 1))
        file["y"] = labels.astype(np.uint8)
    return path


def write_table(path: Path, num_samples: int = NUM_SAMPLES, seed: int = 0) -> Path:
    """Write 3 features of very different size and a value that depends on them, far from zero."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(num_samples, 3)) * [1, 100, 0.01] + [0, 1000, 5]
    with h5py.File(path, "w") as file:
        file["x"] = features.astype(np.float32)
        file["y"] = (5000 + 300 * (features[:, 0] + (features[:, 1] - 1000) / 100)).astype(np.float32)
    return path


def make_trainer(comm: Communicator, **changes: Any) -> Trainer:
    """Return a trainer of a small convolutional network with dropout, in float64 unless changed."""
    model = nn.Sequential(
        nn.Conv2d(4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(CLASSES)
    )
    settings = {
        "model": model,
        "loss": nn.CrossEntropy(),
        "optimizer": optim.SGD(0.1, momentum=0.9, weight_decay=1e-3),
        "lr_schedule": optim.Cosine(warmup_steps=3),
        "dtype": "float64",
        "clip_norm": 1.0,
        "parallel": Parallel(threads=1),
        "comm": comm,
    }
    return Trainer(**(settings | changes))


def fit_images(trainer: Trainer, data: Path, run_dir: Path | None = None, **changes: Any) -> dict[str, Any]:
    """Train on what `write_images` wrote: three epochs in batches of 16, the last of them short."""
    settings = {"epochs": 3, "global_batch_size": 16, "validate": data, "transform": Transform(scale=1 / 255)}
    return trainer.fit(data, run_dir=run_dir, **(settings | changes))


def read_metrics(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """Return the lines of one kind of a run's ``metrics.jsonl``."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def step_losses(run_dir: Path) -> list[float]:
    """Return the loss of every step of a run."""
    return [line["loss"] for line in read_metrics(run_dir, "step")]


def metrics_but_times(folder):
    """Return all lines of a run's metrics, without what no two runs have alike."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if key not in ("seconds", "samples_per_second")} for line in lines]


class StopAfter(nn.CrossEntropy):
    """Sends this process a signal in a given call that trains."""

    def __init__(self, calls, number=signal.SIGTERM):
        super().__init__()
        self.calls, self.number = calls, number

    def __call__(self, outputs, targets, scale, ctx):
        self.calls -= ctx.batch.saving
        if self.calls == 0:
            os.kill(os.getpid(), self.number)
            self.calls = -1
        return super().__call__(outputs, targets, scale, ctx)
