"""The files of a checkpoint: slices of a replica's flat arrays, each under (kind, parameter name, first element)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from hpdl_mpi.data.hdf5 import lies_elsewhere, reading
from hpdl_mpi.parallel import Replica
from hpdl_mpi.train.manifest import DAMAGED, StoredFile, damaged, remedy

AVERAGES = {"params": "ema", "statistics": "ema_statistics"}
"""The kinds of moving averages, by what they follow."""

SLOT = "slot:"
"""Begins the kinds of the optimizer's state."""

FACTORS = "factors"
"""The kind of right factors, where a run has none yet: it may begin to compress."""

RESIDUAL = "residual:"
"""Begins the kinds of what compressed sums carry over, by data-parallel rank."""


class Piece(NamedTuple):
    """Consecutive elements of a parameter, or of its state.

    Attributes
    ----------
    kind, name : str
    size : int
        Elements of the whole.
    start : int
        The number of the first of these.
    values : array, flat
        A view.
    """

    kind: str
    name: str
    size: int
    start: int
    values: np.ndarray


def pieces(replica: Replica) -> Iterator[Piece]:
    """Yield what a rank has of all that a checkpoint holds."""
    layout, arrays, tracked = replica.layout, {"params": replica.params}, {"statistics": replica.statistics}
    if replica.average:
        arrays[AVERAGES["params"]] = replica.average.params
        tracked[AVERAGES["statistics"]] = replica.average.statistics
    for where, kinds in ((layout, arrays), (replica.statistics_layout, tracked)):
        for kind, array in kinds.items():
            for segment in where.segments:
                values = array[segment.start : segment.stop]
                yield Piece(kind, segment.name, values.size, 0, values)
    yield from _slot_pieces(replica)
    if replica.feedback:
        for one in replica.feedback.matrices:
            values = replica.feedback.right(one).reshape(-1)
            yield Piece(FACTORS, one.name, values.size, 0, values)


def _slot_pieces(replica: Replica) -> Iterator[Piece]:
    for name, slot in replica.slots.items():
        place = 0
        for start, stop in replica.shards:
            for segment in replica.layout.segments:
                first, last = max(start, segment.start), min(stop, segment.stop)
                if first < last:
                    values = slot[place + first - start : place + last - start]
                    size = segment.stop - segment.start
                    yield Piece(f"{SLOT}{name}", segment.name, size, first - segment.start, values)
            place += stop - start


def residuals(replica: Replica, index: int, residual: np.ndarray) -> Iterator[Piece]:
    """Yield what the sums of data-parallel rank `index` have left out, of an array like the flat gradients."""
    for segment in replica.layout.segments:
        values = residual[segment.start : segment.stop]
        yield Piece(f"{RESIDUAL}{index}", segment.name, values.size, 0, values)


def write_slices(path: Path, replica: Replica, index: int) -> list[tuple[str, str, int, int]]:
    """Write what this rank owns of all flat arrays; return (kind, parameter, first, last + 1 element) of each.

    HDF5 only lays the file out. We write the elements ourselves, straight from the flat arrays: where the disk is full
    that raises an error, while HDF5 can crash the process.

    Parameters
    ----------
    path : Path
    replica : Replica
    index : int
        This rank's number among its data-parallel ranks. The first one writes all; others what they alone have, their
        share of the optimizer's state, and what sums carry over.
    """
    slices, places = [], []
    with h5py.File(path, "w") as file:
        own = residuals(replica, index, replica.feedback.residual) if replica.feedback else ()
        for kind, name, _, start, values in chain(pieces(replica), own):
            if name in replica.shapes and name not in replica.owned:
                continue  # a rank before this one has the tied parameter
            alone = kind.startswith(SLOT) if replica.sharding else kind.startswith(RESIDUAL)
            if index > 0 and not alone:
                continue
            dataset = _lay_out(file, f"{kind}/{name}/{start}", values)
            slices.append((kind, name, start, start + values.size))
            places.append((dataset.id.get_offset(), values))
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
    path: Path, entry: StoredFile, targets: Mapping[tuple[str, str], Piece], filled: dict[tuple[str, str], int]
) -> None:
    """Copy what the slices of a file have of the targets, and note in `filled` how many elements each of these has got.

    Files are read in the order of the manifest: slices of a parameter follow one another.
    """
    with reading(path, DAMAGED, remedy(path)):
        if sha256(path) != entry["sha256"]:
            raise damaged(path, "another checksum than the manifest's")
        with h5py.File(path, "r") as file:
            for kind, name, start, stop in entry["slices"]:
                if (kind, name) not in targets:
                    continue  # state of another optimizer: `load` refuses it if ours is then missing
                key, target = f"{kind}/{name}/{start}", targets[kind, name]
                first, last = max(start, target.start), min(stop, target.start + target.values.size)
                follows = first == target.start + filled[kind, name] or first >= last
                if not (0 <= start <= stop <= target.size and follows):
                    raise damaged(path, f"{kind} of {name} from {start} to {stop}")
                source = file.get(key)
                if (
                    not isinstance(source, h5py.Dataset)
                    or lies_elsewhere(file, source)
                    or source.shape != (stop - start,)
                ):
                    raise damaged(path, f"no array {key} of {stop - start} elements")
                if first >= last:
                    continue
                values = target.values[first - target.start : last - target.start]
                source.read_direct(values, np.s_[first - start : last - start])
                filled[kind, name] += last - first


def sha256(path: Path) -> str:
    """Return the checksum of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
