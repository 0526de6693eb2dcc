"""The data-parallel step: every rank learns from its share of a batch, the ring sums gradients, all update alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hpdl_mpi.base.errors import require
from hpdl_mpi.base.memory import aligned
from hpdl_mpi.comm import Collective, Communicator, ring_allreduce
from hpdl_mpi.data import Batch
from hpdl_mpi.nn import Loss, LossSums
from hpdl_mpi.optim import clip_factor
from hpdl_mpi.parallel.pipeline import Feed, complete, make_schedule
from hpdl_mpi.parallel.replica import Replica

_SUMS = len(LossSums._fields)


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step did, the same on every rank.

    Attributes
    ----------
    sums : LossSums
        Over the whole global batch, before the update.
    votes : tuple of int
        How many ranks raised each flag.
    """

    sums: LossSums
    votes: tuple[int, ...]

    @property
    def finite(self) -> bool:
        """Whether the loss is a number; if not, there was no update."""
        return bool(np.isfinite(self.sums.loss))


class DataParallelStep:
    """Trains a replica together with those of the other ranks. A call is collective.

    The gradient of a global batch is that of the sum of its losses over the total weight of its samples, whatever
    share each rank holds, so uneven shares, empty ones too, weigh what they should.

    Parameters
    ----------
    replica : Replica
    loss : Loss
    comm : Communicator
        The ranks that hold the same parameters.
    accumulate : int
        Micro-batches that each rank's share is cut into.
    clip_norm : float, optional
        Upper bound of the gradient's global norm.
    num_flags : int
        Flags that ranks can raise for all to see.

    Raises
    ------
    InputError
        `accumulate` or `clip_norm` is out of range.
    """

    def __init__(
        self,
        replica: Replica,
        loss: Loss,
        comm: Communicator,
        *,
        accumulate: int = 1,
        clip_norm: float | None = None,
        num_flags: int = 0,
    ) -> None:
        possible = isinstance(accumulate, (int, np.integer)) and accumulate >= 1
        require("training.accumulate", accumulate, possible, "an integer of at least 1")
        require("training.clip_norm", clip_norm, clip_norm is None or clip_norm > 0, "a number above 0")
        self._replica = replica
        schedule = make_schedule("1f1b", num_ranks=1, num_microbatches=int(accumulate))
        self._executor = replica.executor(complete(schedule), loss)
        self._clip_norm = clip_norm
        self._totals = aligned(_SUMS + num_flags, np.float64)
        self._reduce_totals = self._all_reduce(comm, self._totals)
        self._reduce_gradient = self._all_reduce(comm, replica.grads)

    @staticmethod
    def _all_reduce(comm: Communicator, array: np.ndarray) -> Collective:
        return Collective(comm, ring_allreduce(comm.size, array.size, comm.rank), array)

    def __call__(
        self, batch: Batch, *, epoch: int, lr: float, flags: Callable[[], Sequence[bool]] = tuple
    ) -> StepReport:
        """Learn from this rank's share of a global batch, and update.

        Parameters
        ----------
        batch : Batch
            Borrowed.
        epoch : int
        lr : float
        flags : callable
            Returns the flags that this rank raises; asked after its gradients are done.
        """
        totals = self._totals
        totals.fill(0.0)
        nominal = batch.global_size
        feed = Feed(batch.sample_ids, batch.inputs, batch.targets, epoch, 1.0 / nominal)
        totals[:_SUMS], _ = self._executor.run(feed)
        for index, flag in enumerate(flags(), _SUMS):
            totals[index] = flag
        self._reduce_totals()
        reduced = totals.tolist()
        report = StepReport(LossSums(*reduced[:_SUMS]), tuple(int(vote) for vote in reduced[_SUMS:]))
        if report.finite:
            self._reduce_gradient()
            weight = report.sums.weight
            self._update(nominal / weight if weight else 0.0, lr)
        return report

    def _update(self, scale: float, lr: float) -> None:
        if self._clip_norm is not None:
            scale *= clip_factor(scale * self._replica.gradient_norm(), self._clip_norm)
        self._replica.update(lr=lr, scale=scale)
