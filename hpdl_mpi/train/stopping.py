"""Early stopping: a run ends when evaluations no longer get better.

What evaluations have shown is data in the checkpoint, and each judgement a pure function of it and of metrics that are
the same on all ranks, so all ranks stop at the same step, whether or not the run was resumed on the way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hpdl_mpi.base.output import counted
from hpdl_mpi.train.job import EarlyStopping
from hpdl_mpi.train.metrics import Metrics

_RISING = ("accuracy", "top5")
"""The metrics that are better when larger."""


@dataclass(frozen=True)
class Watch:
    """What the evaluations of a run have shown so far.

    Attributes
    ----------
    metric : str or None
        What is watched; None before the first evaluation.
    step : int
        Of the last evaluation.
    best : float or None
        The best value; None while there was none but NaN.
    best_step : int
        When that was.
    misses : int
        Evaluations since then.
    """

    metric: str | None = None
    step: int = 0
    best: float | None = None
    best_step: int = 0
    misses: int = 0

    def after(self, step: int, metrics: Metrics, settings: EarlyStopping) -> Watch:
        """Return what is known after one more evaluation; another metric than before begins anew."""
        before = self if self.metric == settings.metric else Watch(settings.metric)
        value = getattr(metrics, settings.metric)
        if before._beaten_by(value, settings.min_delta):
            return Watch(settings.metric, step, value, step)
        return replace(before, step=step, misses=before.misses + 1)

    def _beaten_by(self, value: float, min_delta: float) -> bool:
        """Return whether a value is better by more than `min_delta`; NaN never is."""
        if self.best is None:
            return value == value
        return (value - self.best if self.metric in _RISING else self.best - value) > min_delta

    def over(self, settings: EarlyStopping) -> bool:
        """Return whether the run shall end."""
        return self.metric == settings.metric and self.misses >= settings.patience

    def describe(self, settings: EarlyStopping) -> str:
        """Return a line for people about a run that ends."""
        margin = f" by more than {settings.min_delta:g}" if settings.min_delta else ""
        best = "a number" if self.best is None else f"better than {self.best:.6g}, of step {self.best_step},{margin}"
        during = counted(self.misses, "evaluation")
        return f"early stopping after step {self.step}: test {self.metric} was not {best} in {during}"
