"""Sums over samples become the numbers that people read."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from hpdl_mpi.nn import Loss, LossSums, Shape


@dataclass(frozen=True)
class Metrics:
    """Means over samples: the loss; accuracy (classification) or root mean squared error (regression).

    Attributes
    ----------
    loss : float
    accuracy, top5, rmse : float or None
        `top5` is how often the class is among the five likeliest ones.
    """

    loss: float
    accuracy: float | None = None
    top5: float | None = None
    rmse: float | None = None

    @property
    def finite(self) -> bool:
        """Whether all of them are numbers."""
        return all(math.isfinite(value) for value in vars(self).values() if value is not None)

    def __str__(self) -> str:
        styles = {"loss": ".4f", "accuracy": ".4f", "top5": ".4f", "rmse": ".6g"}
        values = {name: getattr(self, name) for name in styles}
        return "  ".join(f"{name} {value:{styles[name]}}" for name, value in values.items() if value is not None)


@dataclass(frozen=True)
class Meter:
    """Makes metrics of sums.

    Attributes
    ----------
    task : {"classification", "regression"}
    num_classes : int
        With five or fewer the class is always among the five likeliest, so there is no top5.
    unit : float, optional
        What one unit of the model's outputs is in the targets' own; without it there is no rmse.
    """

    task: str
    num_classes: int
    unit: float | None = None

    @classmethod
    def of(cls, loss: Loss, output_shape: Shape, unit: float | None) -> Meter:
        """Return the meter of a loss and of a model with outputs of this shape."""
        return cls(loss.task, output_shape[-1] if output_shape else 1, unit)

    def __call__(self, sums: LossSums) -> Metrics:
        """Return the means of `sums`, which are over all ranks."""
        weight = sums.weight or math.nan
        loss = sums.loss / weight
        if self.task == "classification":
            top5 = sums.top5 / weight if self.num_classes > 5 else None
            return Metrics(loss, accuracy=sums.score / weight, top5=top5)
        return Metrics(loss, rmse=None if self.unit is None else self.unit * math.sqrt(sums.score / weight))

    @property
    def names(self) -> list[str]:
        """The metrics that it makes."""
        found = self(LossSums(0.0, 1.0, 0.0))
        return [field.name for field in fields(found) if getattr(found, field.name) is not None]
