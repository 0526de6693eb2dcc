"""One array of a file that somebody hands in for prediction: HDF5 or NPZ, nothing else."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from hpdl_mpi.base.errors import InputError


@contextmanager
def open_array(path: str | os.PathLike[str], name: str) -> Iterator[h5py.Dataset | np.ndarray]:
    """Yield the array `name` of an ``.h5`` or ``.npz`` file; slices of it are NumPy arrays. Local.

    Raises
    ------
    InputError
        No such file or array, another format, or an array that does not hold numbers.
    """
    path = Path(path)
    if not path.exists():
        raise InputError("no such file", where=path)
    opener = {".h5": _hdf5, ".hdf5": _hdf5, ".npz": _npz}.get(path.suffix)
    if opener is None:
        raise InputError("a file of unknown format", where=path, found=path.suffix, expected=".h5, .hdf5 or .npz")
    with opener(path, name) as array:
        if array.dtype.kind not in "buif" or array.ndim == 0:
            raise InputError(
                f"{name!r} holds no samples of numbers",
                where=path,
                found=f"shape {array.shape}, dtype {array.dtype}",
                expected="numbers, the first dimension the samples",
            )
        yield array


@contextmanager
def _hdf5(path: Path, name: str) -> Iterator[h5py.Dataset]:
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise InputError("not a readable HDF5 file", where=path, found=error) from error
    with file:
        if not isinstance(file.get(name), h5py.Dataset):
            raise _absent(path, name, list(file))
        yield file[name]


@contextmanager
def _npz(path: Path, name: str) -> Iterator[np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if name not in archive.files:
                raise _absent(path, name, archive.files)
            array = archive[name]
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("not a readable NPZ file of plain arrays", where=path, found=error) from error
    yield array


def _absent(path: Path, name: str, there: list[str]) -> InputError:
    return InputError(
        f"no array {name!r}", where=path, found=", ".join(there) or "nothing", remedy="name the array with --array"
    )
