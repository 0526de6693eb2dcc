"""From a source in a known format to a dataset in ours: read, split, choose, write."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data.convert import csv_table, idx, npz
from hpdl_mpi.data.convert.csv_table import Missing
from hpdl_mpi.data.convert.select import balanced, split_test
from hpdl_mpi.data.writer import Split, check_target, write_dataset


@dataclass(frozen=True)
class Options:
    """How to convert.

    Attributes
    ----------
    shards, test_shards : int, optional
        Files of each split; by default one per 256 MiB.
    per_class, test_per_class : int, optional
        Keep this many samples of each class, the classes taking turns.
    test_fraction : float
        Part of the samples to set aside for test, where the source has no test split of its own.
    seed : int
        Of the test split and of the choice of samples.
    compression : int
        Level of gzip, 0 to 9.
    targets : str
        The array of class numbers that `per_class` looks at.
    target, classes, missing
        For CSV: see `csv_table.read_splits`.
    """

    shards: int | None = None
    test_shards: int | None = None
    per_class: int | None = None
    test_per_class: int | None = None
    test_fraction: float = 0.0
    seed: int = 0
    compression: int = 6
    targets: str = "y"
    target: str | None = None
    classes: bool = False
    missing: Missing = "error"


def _read_csv(source: Path, options: Options) -> dict[str, Split]:
    if options.target is None:
        raise InputError("which column is the target?", where=source, remedy="name it with --target")
    return csv_table.read_splits(
        source,
        target=options.target,
        classes=options.classes,
        missing=options.missing,
        test_fraction=options.test_fraction,
        seed=options.seed,
    )


def _read_idx(source: Path, options: Options) -> dict[str, Split]:
    return _with_test_split(idx.read_splits(source), source, options)


def _read_npz(source: Path, options: Options) -> dict[str, Split]:
    return _with_test_split(npz.read_splits(source), source, options)


FORMATS = {"IDX": _read_idx, "NPZ": _read_npz, "CSV": _read_csv}
"""Readers of sources: (path, options) to splits. A new format is one more entry and a line in `detect`."""


def detect(source: Path) -> str:
    """Return the format of a source: a folder or any other file is IDX, the rest goes by suffix."""
    return {".npz": "NPZ", ".csv": "CSV"}.get(source.suffix.lower(), "IDX")


def convert(
    source: str | os.PathLike[str], folder: str | os.PathLike[str], options: Options | None = None
) -> list[Path]:
    """Convert IDX, NPZ or CSV into ``folder/train`` and, where there is a test split, ``folder/test``.

    Returns
    -------
    list of Path
        The folders of the splits, each a dataset.

    Raises
    ------
    InputError
        The source is not there or damaged, an option does not fit it, or `folder` holds something.
    StorageError
        The disk is full or cannot be written; nothing is left behind.
    """
    options = options or Options()
    source, folder = Path(source).expanduser(), Path(folder).expanduser()
    check_target(folder)
    if not source.exists():
        raise InputError("no such file or folder", where=source)
    kind = detect(source)
    if kind != "CSV" and (options.target is not None or options.classes or options.missing != "error"):
        raise InputError(f"--target, --classes and --missing are for CSV, not {kind}", where=source)
    splits = FORMATS[kind](source, options)
    if "test" not in splits and options.test_shards is not None:
        raise InputError("no test split to write", where=source, remedy="make one with --test-fraction")
    for name, per_class in (("train", options.per_class), ("test", options.test_per_class)):
        if per_class is not None:
            splits[name] = _balanced_split(splits, name, per_class, source, options)
    write_dataset(
        folder,
        splits,
        num_shards={"train": options.shards, "test": options.test_shards},
        compression=options.compression,
    )
    return [folder / name for name in splits]


def _with_test_split(splits: dict[str, Split], source: Path, options: Options) -> dict[str, Split]:
    if options.test_fraction == 0:
        return splits
    if "test" in splits:
        raise InputError("has a test split of its own", where=source, remedy="leave out --test-fraction")
    train, test = split_test(splits["train"].num_samples, options.test_fraction, options.seed)
    return {"train": splits["train"].take(train), "test": splits["train"].take(test)}


def _balanced_split(splits: dict[str, Split], name: str, per_class: int, source: Path, options: Options) -> Split:
    if name not in splits:
        raise InputError(f"no {name} split to choose from", where=source, found=", ".join(splits))
    labels = splits[name].arrays.get(options.targets)
    if labels is None or labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            "choosing per class needs one class number per sample",
            where=f"{source}: {options.targets!r}",
            found="no such array" if labels is None else f"{labels.dtype} of shape {labels.shape}",
            remedy="name the array of classes with --targets, or leave out --per-class",
        )
    return splits[name].take(balanced(labels, per_class, options.seed))
