"""The files of a checkpoint: slices of a replica's flat arrays, each under (kind, parameter name, first element)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np

from hpdl_mpi.data.hdf5 import lies_elsewhere, reading
from hpdl_mpi.nn import Segment
from hpdl_mpi.parallel import Replica
from hpdl_mpi.train.manifest import DAMAGED, StoredFile, damaged, remedy

AVERAGES = {"params": "ema", "statistics": "ema_statistics"}
"""The kinds of moving averages, by what they follow."""


def segments(replica: Replica) -> Iterator[tuple[str, Segment, np.ndarray]]:
    """Yield what a checkpoint holds: the kind, and a segment of a flat array."""
    arrays = {"params": replica.params} | {f"slot:{name}": array for name, array in replica.slots.items()}
    tracked = {"statistics": replica.statistics}
    if replica.average:
        arrays[AVERAGES["params"]] = replica.average.params
        tracked[AVERAGES["statistics"]] = replica.average.statistics
    for layout, kinds in ((replica.layout, arrays), (replica.statistics_layout, tracked)):
        for kind, array in kinds.items():
            for segment in layout.segments:
                yield kind, segment, array


def write_slices(path: Path, replica: Replica) -> list[tuple[str, str, int, int]]:
    """Write all that this rank owns of all flat arrays; return (kind, parameter, first, last + 1 element) of each.

    HDF5 only lays the file out. We write the elements ourselves, straight from the flat arrays: where the disk is full
    that raises an error, while HDF5 can crash the process.
    """
    slices, places = [], []
    with h5py.File(path, "w") as file:
        for kind, segment, array in segments(replica):
            if segment.name in replica.shapes and segment.name not in replica.owned:
                continue  # a rank before this one has the tied parameter
            part = array[segment.start : segment.stop]
            dataset = _lay_out(file, f"{kind}/{segment.name}/0", part)
            slices.append((kind, segment.name, 0, part.size))
            places.append((dataset.id.get_offset(), part))
    with open(path, "r+b", buffering=0) as file:
        for offset, part in places:
            file.seek(offset)
            rest = part.data.cast("B")
            while rest:
                rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    return slices


def _lay_out(file: h5py.File, name: str, array: np.ndarray) -> h5py.Dataset:
    """Create an array of the same shape and dtype that has its place in the file but no content yet."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    return file.create_dataset(name, array.shape, array.dtype, dcpl=properties)


def read_slices(
    path: Path, entry: StoredFile, targets: Mapping[tuple[str, str], np.ndarray], filled: dict[tuple[str, str], int]
) -> None:
    """Copy the slices of one file to their targets, and note in `filled` how many elements each of these has got."""
    with reading(path, DAMAGED, remedy(path)):
        if sha256(path) != entry["sha256"]:
            raise damaged(path, "another checksum than the manifest's")
        with h5py.File(path, "r") as file:
            for kind, name, start, stop in entry["slices"]:
                if (kind, name) not in targets:
                    continue  # state of another optimizer: `load` refuses it if ours is then missing
                key, target = f"{kind}/{name}/{start}", targets[kind, name]
                if not start == filled[kind, name] <= stop <= target.size:
                    raise damaged(path, f"{kind} of {name} from {start} to {stop}")
                source = file.get(key)
                if (
                    not isinstance(source, h5py.Dataset)
                    or lies_elsewhere(file, source)
                    or source.shape != (stop - start,)
                ):
                    raise damaged(path, f"no array {key} of {stop - start} elements")
                source.read_direct(target[start:stop])
                filled[kind, name] = stop


def sha256(path: Path) -> str:
    """Return the checksum of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
