"""CIFAR-10 and CIFAR-100 in their binary version: records of labels and 32 x 32 pixels, the colours one after another.

A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009. The other version, for Python, is pickled
and could run anything: it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data.convert.files import Files, reading
from hpdl_mpi.data.shards import natural_key
from hpdl_mpi.data.writer import Rows, Split

PIXELS = 3 * 32 * 32
SHAPE = (32, 32, 3)
MAX_NAMES_BYTES = 2**16


@dataclass(frozen=True)
class Kind:
    """One of the two datasets.

    Attributes
    ----------
    labels : tuple of (str, int, str)
        Per byte in front of the pixels: the array that it goes to, how many classes there are, and the file with their
        names.
    splits : dict of str to pattern
        Of the names of files.
    """

    name: str
    labels: tuple[tuple[str, int, str], ...]
    splits: dict[str, re.Pattern]

    @property
    def record_bytes(self) -> int:
        """Bytes of one image with its labels."""
        return len(self.labels) + PIXELS


KINDS = (
    Kind(
        "CIFAR-10",
        (("y", 10, "batches.meta.txt"),),
        {"train": re.compile(r"data_batch_(\d+)\.bin"), "test": re.compile(r"test_batch\.bin")},
    ),
    Kind(
        "CIFAR-100",
        (("y_coarse", 20, "coarse_label_names.txt"), ("y", 100, "fine_label_names.txt")),
        {"train": re.compile(r"train\.bin"), "test": re.compile(r"test\.bin")},
    ),
)
PICKLED = ({"data_batch_1"}, {"test_batch"}, {"batches.meta"}, {"train", "test", "meta"})
"""Names that are there together in the versions for Python."""


@dataclass(frozen=True)
class _Records:
    """The records of one file, from its byte `start` on; `place` is where it stands, for people."""

    place: str
    path: Path
    start: int
    count: int
    record_bytes: int

    def map(self) -> np.ndarray:
        """Return them, uint8 (count, record_bytes), read where they are looked at."""
        with reading(self.place):
            return np.memmap(self.path, np.uint8, "r", self.start, (self.count, self.record_bytes))


def recognises(names: Iterable[str]) -> bool:
    """Tell whether files are those of CIFAR, in either version, by their names."""
    bases = {PurePosixPath(name).name for name in names}
    return _is_pickled(bases) or any(_matching(kind, split, bases) for kind in KINDS for split in kind.splits)


def read_splits(files: Files) -> dict[str, Split]:
    """Return the images in the order of the files, and their labels; pixels are read when they are written.

    Returns
    -------
    dict of str to Split
        "train" and, if its file is there, "test": ``x`` uint8 (n, 32, 32, 3) and ``y`` uint8 (n,); of CIFAR-100 ``y``
        is the fine label, and ``y_coarse`` the other. Names of classes, where they lie beside, are in the attribute
        ``classes``.

    Raises
    ------
    InputError
        Not the binary version, files of both datasets, a batch missing, a size that is not one of whole records, or a
        label outside of the classes.
    """
    bases = [PurePosixPath(name).name for name in files.names]
    kinds = [kind for kind in KINDS if any(_matching(kind, split, bases) for split in kind.splits)]
    if not kinds and _is_pickled(set(bases)):
        raise InputError(
            "the version of CIFAR for Python, which is pickled and could run anything",
            where=files.source,
            expected="the binary version, such as cifar-10-binary.tar.gz",
            remedy="get that one, which holds the same images",
        )
    if len(kinds) > 1:
        raise InputError("files of CIFAR-10 and of CIFAR-100", where=files.source, remedy="keep them in two folders")
    (kind,) = kinds
    found = {split: _matching(kind, split, bases) for split in kind.splits}
    _check_batches(kind, found, files)
    return {split: _read_split(kind, files, indices) for split, indices in found.items() if indices}


def _is_pickled(bases: set[str]) -> bool:
    return any(names <= bases for names in PICKLED)


def _matching(kind: Kind, split: str, bases: Iterable[str]) -> list[int]:
    """Return the numbers of the files of a split, in natural order."""
    matching = [
        (natural_key(Path(base)), index) for index, base in enumerate(bases) if kind.splits[split].fullmatch(base)
    ]
    return [index for _, index in sorted(matching)]


def _check_batches(kind: Kind, found: dict[str, list[int]], files: Files) -> None:
    """Raise unless there are batches 1 to n of training images, or the one file, and no file twice."""
    for split, indices in found.items():
        names = [PurePosixPath(files.names[index]).name for index in indices]
        batches = [int(match[1]) for name in names if (match := kind.splits[split].fullmatch(name)) and match.re.groups]
        expected = list(range(1, len(names) + 1)) if batches else []
        if batches != expected or len(set(names)) < len(names) or (split == "train" and not names):
            raise InputError(
                f"files of the split {split!r} of {kind.name} are missing, or there twice",
                where=files.source,
                found=", ".join(files.names[index] for index in indices) or "none",
                expected="data_batch_1.bin and on, without gaps" if kind is KINDS[0] else "one file",
                remedy="copy the missing files, or keep one copy of each",
            )


def _read_split(kind: Kind, files: Files, indices: Sequence[int]) -> Split:
    records = [_records(kind, files, index) for index in indices]
    labels = np.concatenate([np.array(part.map()[:, : len(kind.labels)]) for part in records])
    attributes: dict[str, dict[str, list[str] | str]] = {}
    for column, (array, count, names_file) in enumerate(kind.labels):
        _check_labels(labels[:, column], count, array, records)
        if names := _names(files, names_file, count):
            attributes[array] = {"classes": names}
    num_samples = sum(part.count for part in records)
    x = Rows(np.arange(num_samples), SHAPE, np.dtype(np.uint8), partial(_read_pixels, records))
    arrays = {array: np.ascontiguousarray(labels[:, column]) for column, (array, _, _) in enumerate(kind.labels)}
    return Split({"x": x, **arrays}, attributes)


def _records(kind: Kind, files: Files, index: int) -> _Records:
    place = files.place(index)
    with reading(place):
        path, start, size = files.extent(index)
    if size == 0 or size % kind.record_bytes:
        raise InputError(
            "length is not that of whole records",
            where=place,
            found=f"{size} bytes",
            expected=f"a multiple of {kind.record_bytes}, as in the binary version of {kind.name}",
            remedy="get the file again: it is incomplete or damaged",
        )
    return _Records(place, path, start, size // kind.record_bytes, kind.record_bytes)


def _check_labels(labels: np.ndarray, count: int, array: str, records: Sequence[_Records]) -> None:
    strange = np.flatnonzero(labels >= count)
    if strange.size:
        starts = np.cumsum([0] + [part.count for part in records])
        part = int(np.searchsorted(starts, strange[0], side="right")) - 1
        raise InputError(
            f"a label outside of the classes for {array!r}",
            where=f"{records[part].place}: image {strange[0] - starts[part]}",
            found=labels[strange[0]],
            expected=f"0 to {count - 1}",
            remedy="get the file again: it is damaged, or of another dataset",
        )


def _names(files: Files, name: str, count: int) -> list[str]:
    """Return the names of the classes, one a line, or none if there is no such file."""
    index = next((i for i, path in enumerate(files.names) if PurePosixPath(path).name == name), None)
    if index is None:
        return []
    with reading(files.place(index)), files.open(index) as stream:
        content = stream.read(MAX_NAMES_BYTES)
    names = content.decode("utf-8", "replace").split("\n")
    names = [line.strip() for line in names if line.strip()]
    if len(names) != count:
        raise InputError(
            "wrong number of names",
            where=files.place(index),
            found=len(names),
            expected=count,
            remedy="remove the file",
        )
    return names


def _read_pixels(records: Sequence[_Records], ids: np.ndarray) -> np.ndarray:
    """Return images, uint8 (n, 32, 32, 3)."""
    planes = np.empty((ids.size, PIXELS), np.uint8)
    start = 0
    for part in records:
        here = np.flatnonzero((ids >= start) & (ids < start + part.count))
        if here.size:
            planes[here] = part.map()[ids[here] - start, -PIXELS:]
        start += part.count
    return planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
