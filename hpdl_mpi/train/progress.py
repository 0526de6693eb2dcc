"""Where a run stands and what it must not change, as data that a checkpoint keeps."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data import Augment, Masking, Transform
from hpdl_mpi.data.sampler import Shuffle
from hpdl_mpi.nn import LossSums
from hpdl_mpi.train.stopping import Watch


@dataclass(frozen=True)
class Recipe:
    """What a run cannot change when it goes on: which samples come in which order, and what their numbers mean.

    Attributes
    ----------
    seed, global_batch_size, shuffle, dtype
        As in a job.
    slots : list of str
        The optimizer's state.
    inputs, targets : str
        Names of the arrays.
    transform, target_transform : Transform
        With measured means and deviations.
    ema : float or None
        Decay of the moving average of the weights.
    augment : Augment
    context, pairs, bucket
        As in a job.
    masking : Masking, optional
    """

    seed: int
    global_batch_size: int
    shuffle: Shuffle
    dtype: str
    slots: list[str]
    inputs: str
    targets: str
    transform: Transform
    target_transform: Transform
    ema: float | None = None
    augment: Augment = Augment()  # noqa: RUF009 - it is frozen
    context: int | None = None
    pairs: bool = False
    bucket: bool = False
    masking: Masking | None = None

    def refuse_changes(self, began: Recipe) -> None:
        """Raise an InputError, alike on all ranks, if the run began with another recipe than this."""
        for place in fields(self):
            found, expected = getattr(self, place.name), getattr(began, place.name)
            if found != expected:
                raise InputError(
                    "a run cannot change this when it goes on",
                    where=_KEYS.get(place.name, f"data.{place.name}"),
                    found=found,
                    expected=expected,
                    remedy="start a new run with --run-dir",
                    shared=True,
                )


_KEYS = {
    "seed": "seed",
    "global_batch_size": "training.global_batch_size",
    "dtype": "training.dtype",
    "slots": "the optimizer's state",
    "ema": "training.ema",
}
"""Where a recipe's parts stand in a job, if not in its section ``data``."""


@dataclass
class Progress:
    """Where a run stands: what it has done, and what it must remember to go on exactly.

    Attributes
    ----------
    recipe : Recipe
    fingerprint : str
        Of the training data.
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
        Mean of the last epoch; at the end of a run that ends within one, of the part that it has done.
    metrics_bytes : int
        Length of ``metrics.jsonl`` at this point.
    watch : Watch
        What evaluations have shown, for early stopping.
    """

    recipe: Recipe
    fingerprint: str
    epoch: int = 0
    offset: int = 0
    samples: int = 0
    seconds: float = 0.0
    wall_seconds: float = 0.0
    sums: LossSums = field(default=LossSums(0.0, 0.0, 0.0))
    train_loss: float | None = None
    metrics_bytes: int = 0
    watch: Watch = field(default=Watch())

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
