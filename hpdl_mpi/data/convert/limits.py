"""What a file may claim: sizes are checked against the bytes that are there before memory is taken."""

from __future__ import annotations

import os
from pathlib import Path

from hpdl_mpi.base.errors import InputError

MAX_DEFLATE_RATIO = 1032
"""Deflate, as in gzip and zip, cannot expand data by more than this."""


def check_claim(claimed: int, compressed: int, where: Path | str) -> None:
    """Raise if `claimed` bytes cannot come out of `compressed` bytes of deflate, or do not fit in this machine.

    Raises
    ------
    InputError
        Either is so.
    """
    if claimed > MAX_DEFLATE_RATIO * compressed:
        raise InputError(
            "claims more data than it can hold",
            where=where,
            found=f"{claimed} bytes announced in {compressed} compressed bytes",
            remedy="get the file again: it is damaged or made to mislead",
        )
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if claimed > memory:
        raise InputError(
            "does not fit in memory",
            where=where,
            found=f"{claimed} bytes",
            expected=f"at most {memory}, the memory of this machine",
            remedy="split the source, or write the HDF5 files piece by piece with h5py",
        )
