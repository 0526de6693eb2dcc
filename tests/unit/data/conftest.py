"""Small datasets as other people write them: any chunks, any filters, any number of files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.images import write_images

WriteFile = Callable[..., Path]
WriteShards = Callable[..., tuple[Path, np.ndarray, np.ndarray]]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a folder of two classes, with four and three images."""
    write_images(tmp_path / "source", {"cat": 4, "ant": 3})
    return tmp_path / "source"


@pytest.fixture
def write_file(tmp_path: Path) -> WriteFile:
    """Return a function that writes named arrays into one HDF5 file; `options` go to create_dataset."""

    def write(name: str, arrays: dict[str, np.ndarray], **options: object) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            for key, array in arrays.items():
                file.create_dataset(key, data=array, **options)
        return path

    return write


@pytest.fixture
def write_shards(tmp_path: Path) -> WriteShards:
    """Return a function that writes random samples into several files, x and y chunked differently."""

    def write(
        counts: Sequence[int], sample: tuple[int, ...] = (3, 2), x_chunk: int | None = 4, y_chunk: int | None = 3
    ) -> tuple[Path, np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        x = rng.integers(0, 256, (sum(counts), *sample)).astype(np.uint8)
        y = rng.integers(0, 5, sum(counts)).astype(np.uint8)
        folder = tmp_path / "shards"
        folder.mkdir()
        stops = np.cumsum(counts)
        for index, (count, stop) in enumerate(zip(counts, stops, strict=True)):
            rows = slice(stop - count, stop)
            with h5py.File(folder / f"part-{index}.h5", "w") as file:
                x_chunks = (min(x_chunk, count), *sample) if x_chunk else None
                file.create_dataset("x", data=x[rows], chunks=x_chunks, compression="gzip" if x_chunk else None)
                file.create_dataset("y", data=y[rows], chunks=(min(y_chunk, count),) if y_chunk else None)
        return folder, x, y

    return write
