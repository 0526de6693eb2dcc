"""Sums over samples become the numbers that people read."""

from __future__ import annotations

import math
from dataclasses import dataclass

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

    @property
    def finite(self) -> bool:
        """Whether all of them are numbers."""
        return all(math.isfinite(value) for value in (self.loss, self.accuracy, self.rmse) if value is not None)

    def __str__(self) -> str:
        accuracy = "" if self.accuracy is None else f"  accuracy {self.accuracy:.4f}"
        rmse = "" if self.rmse is None else f"  rmse {self.rmse:.6g}"
        return f"loss {self.loss:.4f}{accuracy}{rmse}"
