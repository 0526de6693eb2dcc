"""One array of a file that somebody hands in for prediction: HDF5 or NPZ, nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data.convert.npz import read_arrays
from hpdl_mpi.data.hdf5 import describe, no_such_array, open_shard, reading


def read_samples(path: str | os.PathLike[str], name: str, rows: int) -> Iterator[np.ndarray]:
    """Yield the samples of the array `name` of an ``.h5`` or ``.npz`` file, at most `rows` at a time. Local.

    Raises
    ------
    InputError
        No such file or array, another format, damage, or an array that holds no samples of numbers.
    """
    path = Path(os.path.expanduser(path))
    if not os.path.exists(path):
        raise InputError("no such file", where=path)
    if path.is_dir():
        raise InputError("a folder, not a file", where=path, remedy="name one of the files in it")
    if path.suffix in (".h5", ".hdf5"):
        yield from _from_hdf5(path, name, rows)
    elif path.suffix == ".npz":
        yield from _from_npz(path, name, rows)
    else:
        raise InputError(
            "a file of unknown format", where=path, found=path.suffix or "no suffix", expected=".h5, .hdf5 or .npz"
        )


def _from_hdf5(path: Path, name: str, rows: int) -> Iterator[np.ndarray]:
    with open_shard(path) as file:
        count = describe(file, path, name).count
        for start in range(0, count, rows):
            stop = min(start + rows, count)
            what = f"samples {start} to {stop - 1} of {name!r} cannot be read"
            with reading(path, what, remedy="copy or write the file again"):
                samples = file[name][start:stop]
            yield samples


def _from_npz(path: Path, name: str, rows: int) -> Iterator[np.ndarray]:
    arrays = read_arrays(path)
    if name not in arrays:
        raise no_such_array(path, name, arrays)
    array = arrays[name]
    if array.size == 0 or array.ndim == 0:
        raise InputError(
            "no samples", where=f"{path}: {name}", found=f"shape {array.shape}", expected="at least one sample"
        )
    for start in range(0, len(array), rows):
        yield array[start : start + rows]
