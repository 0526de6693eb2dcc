"""What a batch, or a micro-batch of it, gives to the stages of a rank."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hpdl_mpi.data import Batch
from hpdl_mpi.nn import joined_members, members
from hpdl_mpi.parallel.pipeline.flow import Activation


@dataclass
class Feed:
    """What a rank's share of a batch gives to its stages; the arrays are borrowed.

    Attributes
    ----------
    sample_ids : int64 array, shape (n,)
        On every rank.
    inputs : array, shape (n, ...), or tuple of such, optional
        Where the first stage is.
    targets : array, shape (n, ...), optional
        Where the last stage is, unless it is to predict.
    epoch : int
    scale : float
        Multiplies the gradient of the loss sum.
    input_shape : tuple of int, or tuple of such, optional
        Of one sample of this batch, on every rank, where it is not that of the first stage.
    """

    sample_ids: np.ndarray
    inputs: Activation | None = None
    targets: np.ndarray | None = None
    epoch: int = 0
    scale: float = 1.0
    input_shape: Any = None

    @classmethod
    def of(cls, batch: Batch, epoch: int = 0, scale: float = 1.0) -> Feed:
        """Return what a loader's batch gives."""
        return cls(batch.sample_ids, batch.inputs, batch.targets, epoch, scale, batch.input_shape)

    @property
    def arrays(self) -> list[np.ndarray]:
        """All arrays that there are."""
        return [array for array in (*members(self.inputs), self.targets, self.sample_ids) if array is not None]

    def copy(self) -> Feed:
        """Return the same in arrays of its own."""
        inputs = joined_members(tuple(array.copy() for array in members(self.inputs)))
        targets = None if self.targets is None else self.targets.copy()
        return replace(self, sample_ids=self.sample_ids.copy(), inputs=inputs, targets=targets)
