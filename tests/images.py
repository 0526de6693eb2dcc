"""Small synthetic images in folders of classes, and what a dataset holds."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from hpdl_mpi.data import Dataset
from hpdl_mpi.data.hdf5 import text_attribute

NOISE = np.random.default_rng(0).integers(0, 256, (6, 5, 3)).astype(np.uint8)


def signalled(number: int, shard: str, call: str) -> str:
    """Return a program that makes a call, and sends itself a signal when it is about to write a shard."""
    return f"""
import os
from hpdl_mpi.data import writer
original = writer.write_whole
def write_whole(path, data):
    if {shard!r} in path.name:
        os.kill(os.getpid(), {int(number)})
    original(path, data)
writer.write_whole = write_whole
{call}
"""


def encoded(pixels: np.ndarray, form: str = "PNG", **options: object) -> bytes:
    """Return pixels, uint8 (height, width) or (height, width, 3), as the bytes of a file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def write_images(
    root: Path, counts: Mapping[str, int], shape: tuple[int, ...] = (6, 5, 3), seed: int = 0
) -> dict[str, np.ndarray]:
    """Write so many PNG files of noise into each folder of `root`; return their pixels by name."""
    rng = np.random.default_rng(seed)
    images = {}
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            name = f"{folder}/{number:04d}.png"
            images[name] = rng.integers(0, 256, shape).astype(np.uint8)
            (root / name).write_bytes(encoded(images[name]))
    return images


def stored(folder: Path, targets: str = "y") -> tuple[np.ndarray, np.ndarray]:
    """Return all inputs and targets of a dataset in storage order."""
    with Dataset.open(folder, targets=targets) as dataset:
        x = np.empty((dataset.num_samples, *dataset.input_shape), dataset.input_dtype)
        y = np.empty((dataset.num_samples, *dataset.target_shape), dataset.target_dtype)
        dataset.read(np.arange(dataset.num_samples), x, y)
    return x, y


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def class_names(split: Path) -> list[str]:
    """Return the names of the classes that a dataset has."""
    with h5py.File(next(split.glob("*.h5"))) as file:
        return text_attribute(file["y"], "classes")


def nothing_left(folder: Path) -> bool:
    """Return whether there is neither a folder nor what was to become it."""
    return not folder.exists() and not list(folder.parent.glob(f".{folder.name}*"))
