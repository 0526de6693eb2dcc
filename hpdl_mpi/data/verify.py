"""Reads all of a dataset and checks it: checksums, gaps, numbers, labels, order of shards."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data.dataset import Dataset
from hpdl_mpi.data.hdf5 import find_array, is_ours, open_shard, reading, stated_place, text_attribute
from hpdl_mpi.data.samples import Which
from hpdl_mpi.data.shards import find_shards, named_place
from hpdl_mpi.data.statistics import value_range

MAX_CLASSES = 2**20


@dataclass(frozen=True)
class ShardReport:
    """What reading all of a sound shard showed.

    Attributes
    ----------
    class_counts : int64 (num_classes,) or None
        Samples per class, for integer targets.
    target_range : (float, float) or None
        Smallest and largest value, for float targets.
    checksums : bool
        Whether all arrays carry checksums, so that damage cannot go unseen.
    """

    path: Path
    num_samples: int
    class_counts: np.ndarray | None
    target_range: tuple[float, float] | None
    checksums: bool


def verify(path: str | os.PathLike[str], inputs: str = "x", targets: str = "y") -> Iterator[ShardReport]:
    """Yield a report for each shard once all of it has been read and found sound.

    Parameters
    ----------
    path, inputs, targets
        As in `Dataset.open`.

    Raises
    ------
    InputError
        The first thing that is wrong, with its file and place: what `Dataset.open` finds, a shard under another's
        name, a damaged chunk, a float that is not finite, a label below 0 or outside the classes that the file names.
    """
    Dataset.open(path, inputs, targets).close()
    for shard_path in find_shards(path):
        with open_shard(shard_path) as file:
            checksums = check_layout(file, shard_path, (inputs, targets))
            names = (
                text_attribute(find_array(file, shard_path, targets), "classes") if is_ours(file, shard_path) else []
            )
        with Dataset.open(shard_path, inputs, targets, cache_bytes=0) as shard:
            _require_finite(shard, "inputs")
            _require_finite(shard, "targets")
            is_classes = shard.target_dtype.kind in "iub"
            yield ShardReport(
                path=shard_path,
                num_samples=shard.num_samples,
                class_counts=_count_classes(shard, len(names) or MAX_CLASSES) if is_classes else None,
                target_range=None if is_classes else value_range(shard),
                checksums=checksums,
            )


def check_layout(file: h5py.File, path: Path, names: Sequence[str]) -> bool:
    """Tell whether some arrays carry checksums, all of them; reads no samples.

    Raises
    ------
    InputError
        The shard has another's name, or chunks of an array overlap or lie outside the file.
    """
    _check_name(file, path)
    arrays = [find_array(file, path, name) for name in names]
    for array in arrays:
        _check_places(array, path)
    return all(array.fletcher32 for array in arrays)


def _check_name(file: h5py.File, path: Path) -> None:
    stated, named = stated_place(file, path), named_place(path)
    if stated and named and stated != named:
        raise InputError(
            "a shard under the name of another",
            where=path,
            found="shard {} of {}".format(*stated),
            remedy="give it the name that says so, or convert the dataset again",
        )


def _check_places(array: h5py.Dataset, path: Path) -> None:
    """Raise if chunks overlap or lie outside the file: older formats have no checksum over the index of chunks."""
    if array.chunks is None:
        return
    places: list[tuple[int, int]] = []
    with reading(f"{path}: {array.name}"):
        array.id.chunk_iter(lambda chunk: places.append((chunk.byte_offset, chunk.size)))
    starts, sizes = np.array(sorted(places), np.uint64).T
    stops = np.append(starts[1:], np.uint64(path.stat().st_size))
    if np.any(starts > stops) or np.any(sizes > stops - starts):
        raise InputError(
            "the index of chunks is damaged",
            where=f"{path}: {array.name}",
            found="chunks that overlap or lie outside the file",
            remedy="copy or convert the file again",
        )


def _require_finite(shard: Dataset, which: Which) -> None:
    start = 0
    for values in shard.blocks(which):
        if not np.isfinite(values).all():
            sample = start + int(np.argwhere(~np.isfinite(values))[0][0])
            raise InputError(
                f"sample {sample} of {shard.names[which]!r} is not finite",
                where=shard.path,
                found="NaN or infinity",
                remedy="remove or mend the sample, and write the file again",
            )
        start += len(values)


def _count_classes(shard: Dataset, num_classes: int) -> np.ndarray:
    """Return the number of samples of each class, int64 (highest class + 1,)."""
    counts = np.zeros(0, np.int64)
    start = 0
    for labels in shard.blocks("targets"):
        outside = (labels < 0) | (labels >= num_classes)
        if outside.any():
            place = tuple(np.argwhere(outside)[0])
            raise InputError(
                f"label {labels[place]} of sample {start + place[0]} is outside the classes",
                where=shard.path,
                expected=f"0 to {num_classes - 1}",
                remedy="number the classes from 0, and store values that are not classes as floats",
            )
        block = np.bincount(labels.ravel().astype(np.int64), minlength=counts.size)
        block[: counts.size] += counts
        counts = block
        start += len(labels)
    return counts
