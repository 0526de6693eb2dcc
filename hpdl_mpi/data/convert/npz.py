"""NPZ: a zip of NumPy arrays. Arrays keep their names; ``x_train`` and ``x_test`` become ``x`` of two splits."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data.convert.limits import check_claim
from hpdl_mpi.data.writer import Split

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, SyntaxError, TypeError, tokenize.TokenError)
"""What zipfile and NumPy's parser of headers raise on a damaged file, beside ValueError."""


def read_splits(source: Path) -> dict[str, Split]:
    """Read all arrays of an NPZ file; the first dimension of each is the samples.

    Returns
    -------
    dict of str to Split
        "train", and "test" if every name ends in ``_train`` or ``_test``.

    Raises
    ------
    InputError
        Damaged, not numbers (pickled objects are never read), or arrays of different lengths.
    """
    arrays = read_arrays(source)
    groups: dict[str, dict[str, np.ndarray]] = {"train": arrays}
    if arrays and all(name.endswith(("_train", "_test")) for name in arrays):
        groups = {}
        for name, array in arrays.items():
            base, _, split = name.rpartition("_")
            groups.setdefault(split, {})[base] = array
    for split, members in groups.items():
        if not members or any(a.ndim == 0 for a in members.values()) or len({len(a) for a in members.values()}) > 1:
            raise InputError(
                f"arrays of the split {split!r} do not fit",
                where=source,
                found=", ".join(f"{name} {array.shape}" for name, array in members.items()) or "no arrays",
                expected="the same number of samples, the first dimension, in each",
            )
    return {split: Split(members) for split, members in groups.items()}


def read_arrays(source: Path) -> dict[str, np.ndarray]:
    """Return all arrays of an NPZ file by name; each must hold numbers and be as large as its header says.

    Raises
    ------
    InputError
        Damaged, or not arrays of numbers; pickled objects are never read.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            members = archive.infolist()
            for member in members:
                _check_member(archive, member, source)
            # All are read at once.
            check_claim(sum(one.file_size for one in members), sum(one.compress_size for one in members), source)
        with np.load(source, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (*DAMAGE, ValueError) as error:
        if isinstance(error, InputError):
            raise
        remedy = "write it again with numpy.savez, arrays of numbers only"
        raise InputError("cannot be read as NPZ", where=source, found=error, remedy=remedy) from error


def _check_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, source: Path) -> None:
    """Raise if a member is not an array of numbers of just the size that its header announces."""
    where = f"{source}: {member.filename}"
    check_claim(member.file_size, member.compress_size, where)
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            raise InputError("unknown version of the NPY format", where=where, found=version)
        shape, _, dtype = _HEADERS[version](stream)
        header_bytes = stream.tell()
    if dtype.kind not in "biuf":
        raise InputError("not an array of numbers", where=where, found=dtype, expected="integers or floats")
    if math.prod(shape) * dtype.itemsize != member.file_size - header_bytes:
        raise InputError(
            "size does not fit its header",
            where=where,
            found=f"{member.file_size - header_bytes} bytes",
            expected=f"{math.prod(shape) * dtype.itemsize} for shape {shape} of {dtype}",
        )
