"""One array of a file that somebody hands in for prediction: HDF5 or NPZ, nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data.convert.npz import read_arrays
from hpdl_mpi.data.hdf5 import describe, no_such_array, open_shard


@contextmanager
def open_array(path: str | os.PathLike[str], name: str) -> Iterator[h5py.Dataset | np.ndarray]:
    """Yield the array `name` of an ``.h5`` or ``.npz`` file; slices of it are NumPy arrays. Local.

    Raises
    ------
    InputError
        No such file or array, another format, damage, or an array that holds no samples of numbers.
    """
    path = Path(path)
    if not path.exists():
        raise InputError("no such file", where=path)
    if path.suffix in (".h5", ".hdf5"):
        with open_shard(path) as file:
            describe(file, path, name)
            yield file[name]
    elif path.suffix == ".npz":
        arrays = read_arrays(path)
        if name not in arrays:
            raise no_such_array(path, name, arrays)
        yield arrays[name]
    else:
        raise InputError("a file of unknown format", where=path, found=path.suffix, expected=".h5, .hdf5 or .npz")
