"""Predictions for the samples of a file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.base.files import check_destination, write_file
from hpdl_mpi.data.arrays import read_samples
from hpdl_mpi.train.trainer import Trainer

_ROWS = 4096


def check_output(output: Path) -> None:
    """Raise an `InputError` if predictions cannot be written to this file: found out before the work, not after."""
    if output.suffix not in (".csv", ".npz"):
        raise InputError("a file of unknown format", where="--output", found=output.suffix, expected=".csv or .npz")
    check_destination(output)


def predict_file(trainer: Trainer, source: str, array: str, output: Path) -> int:
    """Write a prediction for each sample of a file and return how many there are. Collective.

    The ranks of the first pipeline do it, rank 0 writes; all others return 0.

    Parameters
    ----------
    trainer : Trainer
        Holds the model.
    source : str
        An ``.h5`` or ``.npz`` file.
    array : str
        The array in it; stored as the training inputs are.
    output : Path
        A file that `check_output` has found possible: columns `sample`, and `class` and `probability` (the largest
        softmax), or `value`.

    Raises
    ------
    InputError
        The file, the array or its shape does not fit.
    StorageError
        `output` cannot be written.
    """
    if trainer.grid.coordinate("dp") > 0:
        return 0
    outputs = np.concatenate([trainer.predict(samples) for samples in read_samples(source, array, _ROWS)])
    columns = _columns(outputs, trainer.loss.task)
    if trainer.comm.rank == 0:
        write_file(output, _csv(columns) if output.suffix == ".csv" else _npz(columns))
    return len(columns["sample"])


def _columns(outputs: np.ndarray, task: str) -> dict[str, np.ndarray]:
    columns = {"sample": np.arange(len(outputs))}
    if task == "classification":
        likelihood = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
        columns["class"] = outputs.argmax(axis=-1)
        columns["probability"] = likelihood.max(axis=-1) / likelihood.sum(axis=-1)
    elif outputs.shape[1:] == (1,):
        columns["value"] = outputs[:, 0]
    else:
        columns |= {f"value_{i}": column for i, column in enumerate(outputs.reshape(len(outputs), -1).T)}
    return columns


def _csv(columns: dict[str, np.ndarray]) -> bytes:
    # as text, a number of NumPy's has the fewest digits that give the same number of its type again
    texts = [column.astype(str).tolist() for column in columns.values()]
    lines = [",".join(row) for row in [tuple(columns), *zip(*texts, strict=True)]]
    return ("\n".join(lines) + "\n").encode()


def _npz(columns: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **columns)
    return buffer.getvalue()
