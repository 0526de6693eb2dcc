"""Sums over samples become the numbers that people read; where a run stands, as data that a checkpoint keeps."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from hpdl_mpi.nn import LossSums


@dataclass(frozen=True)
class Metrics:
    """Means over samples: the loss, and accuracy (classification) or root mean squared error (regression)."""

    loss: float
    accuracy: float | None
    rmse: float | None

    @classmethod
    def of(cls, sums: LossSums, task: str, unit: float | None = None) -> Metrics:
        """Return the means of `sums`.

        Parameters
        ----------
        sums : LossSums
            Over all ranks.
        task : {"classification", "regression"}
        unit : float, optional
            What one unit of the model's outputs is in the targets' own; without it there is no rmse.
        """
        weight = sums.weight or math.nan
        classifies = task == "classification"
        return cls(
            loss=sums.loss / weight,
            accuracy=sums.score / weight if classifies else None,
            rmse=None if classifies or unit is None else unit * math.sqrt(sums.score / weight),
        )

    def __str__(self) -> str:
        accuracy = "" if self.accuracy is None else f"  accuracy {self.accuracy:.4f}"
        rmse = "" if self.rmse is None else f"  rmse {self.rmse:.6g}"
        return f"loss {self.loss:.4f}{accuracy}{rmse}"


@dataclass
class Progress:
    """Where a run stands: what it has done, and what it must remember to go on exactly.

    Attributes
    ----------
    epoch : int
        Epochs done.
    offset : int
        Samples of the present epoch that are done.
    samples : int
        Samples learnt from in the whole run.
    seconds : float
        Spent in training steps, over all parts of the run.
    wall_seconds : float
        Spent in all, start-up and evaluations included, over all parts.
    sums : LossSums
        Of the present epoch so far.
    train_loss : float or None
        Mean of the last whole epoch.
    metrics_bytes : int
        Length of ``metrics.jsonl`` at this point.
    fingerprint : str
        Of the training data.
    """

    epoch: int = 0
    offset: int = 0
    samples: int = 0
    seconds: float = 0.0
    wall_seconds: float = 0.0
    sums: LossSums = field(default=LossSums(0.0, 0.0, 0.0))
    train_loss: float | None = None
    metrics_bytes: int = 0
    fingerprint: str = ""

    def count(self, sums: LossSums, num_samples: int, seconds: float) -> None:
        """Note one more step."""
        self.offset += num_samples
        self.samples += num_samples
        self.seconds += seconds
        self.sums = LossSums(*(total + term for total, term in zip(self.sums, sums, strict=True)))

    def end_epoch(self) -> None:
        """Note that the epoch is over."""
        self.epoch += 1
        self.offset = 0
        self.sums = LossSums(0.0, 0.0, 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain values."""
        return asdict(self) | {"sums": list(self.sums)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Progress:
        """Return what `to_dict` described."""
        return cls(**(values | {"sums": LossSums(*values["sums"])}))
