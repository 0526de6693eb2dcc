"""Predictions for the samples of files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpdl_mpi.base.errors import InputError, amended
from hpdl_mpi.base.files import check_destination, write_file
from hpdl_mpi.data.arrays import read_samples
from hpdl_mpi.data.hdf5 import find_array, is_ours, open_shard, text_attribute
from hpdl_mpi.data.shards import SUFFIXES, find_shards
from hpdl_mpi.train.job_data import Data
from hpdl_mpi.train.source import PathLike
from hpdl_mpi.train.trainer import Trainer

NO_CLASS = -1
"""In place of a class, where the outputs are not finite numbers."""

_ROWS = 4096


@dataclass(frozen=True)
class Predicted:
    """What `predict_files` has written.

    Attributes
    ----------
    count : int
        Samples.
    bad : int
        Those whose outputs are not finite numbers.
    first_bad : int, optional
        The first of these.
    """

    count: int
    bad: int
    first_bad: int | None


def check_output(output: Path) -> None:
    """Raise an `InputError` if predictions cannot be written to this file: found out before the work, not after."""
    if output.suffix not in (".csv", ".npz"):
        raise InputError("a file of unknown format", where="--output", found=output.suffix, expected=".csv or .npz")
    check_destination(output)


def predict_files(trainer: Trainer, source: PathLike, array: str, output: Path, data: Data) -> Predicted | None:
    """Write a prediction for each sample of some files and return what there is to say of them. Collective.

    The ranks of the first pipeline do it, rank 0 writes; all others return None.

    Parameters
    ----------
    trainer : Trainer
        Holds the model.
    source : path-like
        A folder of shards, a glob, or one ``.h5`` or ``.npz`` file.
    array : str
        The array in them; stored as the training inputs are.
    output : Path
        A file that `check_output` has found possible: columns `sample`, and `class`, `probability` (the largest
        softmax) and, where the data tell it, `name` (of the class), or `value`. Where outputs are not finite numbers,
        the class is `NO_CLASS` and the probability nan.
    data : Data
        What the job of the run says of its data: the training shards name the classes; those of `source` do where
        these are gone.

    Raises
    ------
    InputError
        A file, the array or its shape does not fit, or the model puts out a class for each token.
    StorageError
        `output` cannot be written.
    """
    _refuse_sequences(trainer, data)
    if trainer.grid.coordinate("dp") > 0:
        return None
    outputs = np.concatenate(list(_outputs(trainer, find_shards(source), array)))
    finite = np.isfinite(outputs.reshape(len(outputs), -1)).all(axis=1)
    bad = np.flatnonzero(~finite)
    if trainer.comm.rank == 0:
        classification = trainer.loss.task == "classification"
        names = _class_names((data.train, source), data.targets, outputs.shape[-1]) if classification else []
        columns = _columns(outputs, finite, trainer.loss.task, names)
        write_file(output, _csv(columns) if output.suffix == ".csv" else _npz(columns))
    return Predicted(len(outputs), len(bad), int(bad[0]) if len(bad) else None)


def _refuse_sequences(trainer: Trainer, data: Data) -> None:
    """Raise on all ranks if the model gives a sample many classes: a table has one row for each."""
    shape = trainer.replica.output_shape
    if data.pairs:
        raise InputError(
            "the run is on pairs of text",
            where="hpdl predict",
            found="files of arrays",
            expected="a file of lines, each a source",
            remedy="name a .txt or .tsv file",
            shared=True,
        )
    if trainer.loss.task == "classification" and len(shape) > 1:
        writes_text = data.context is not None and data.masking is None
        raise InputError(
            "the model puts out a class for each token",
            where="hpdl predict",
            found=f"outputs of shape {shape}",
            expected="one class, or values, for each sample",
            remedy="write text with hpdl generate, or " * writes_text
            + "take all outputs from Trainer.predict in Python",
            shared=True,
        )


def _outputs(trainer: Trainer, files: list[Path], array: str) -> Iterator[np.ndarray]:
    for file in files:
        for samples in read_samples(file, array, _ROWS):
            with amended(f"{file}: "):
                outputs = trainer.predict(samples)
            yield outputs


def _class_names(sources: tuple[PathLike, ...], targets: str, num_classes: int) -> list[str]:
    """Return the names of the model's classes that the first of some datasets to have them states; or none."""
    for source in sources:
        with suppress(InputError):  # a dataset may be gone by now, or lack targets: its classes stay numbers
            path = find_shards(source)[0]
            if path.suffix not in SUFFIXES:
                continue
            with open_shard(path) as file:
                names = text_attribute(find_array(file, path, targets), "classes") if is_ours(file, path) else []
            if len(names) == num_classes:
                return names
    return []


def _columns(outputs: np.ndarray, finite: np.ndarray, task: str, names: list[str]) -> dict[str, np.ndarray]:
    columns = {"sample": np.arange(len(outputs))}
    if task == "classification":
        logits = np.where(finite[:, None], outputs, np.nan)
        likelihood = np.exp(logits - logits.max(axis=-1, keepdims=True))
        columns["class"] = np.where(finite, outputs.argmax(axis=-1), NO_CLASS)
        columns["probability"] = likelihood.max(axis=-1) / likelihood.sum(axis=-1)
        if names:
            columns["name"] = np.array([*names, ""])[columns["class"]]
    elif outputs.shape[1:] == (1,):
        columns["value"] = outputs[:, 0]
    else:
        columns |= {f"value_{i}": column for i, column in enumerate(outputs.reshape(len(outputs), -1).T)}
    return columns


def _csv(columns: dict[str, np.ndarray]) -> bytes:
    # as text, a number of NumPy's has the fewest digits that give the same number of its type again
    texts = [column.astype(str).tolist() for column in columns.values()]
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([tuple(columns), *zip(*texts, strict=True)])
    return buffer.getvalue().encode()


def _npz(columns: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **columns)
    return buffer.getvalue()
