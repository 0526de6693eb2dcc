"""Evaluation: the loss and score of a whole dataset, shared among the pipelines."""

from __future__ import annotations

from contextlib import closing

import numpy as np

from hpdl_mpi.comm import Communicator
from hpdl_mpi.data import Loader
from hpdl_mpi.nn import Loss, LossSums
from hpdl_mpi.parallel import Replica
from hpdl_mpi.parallel.pipeline import Feed
from hpdl_mpi.train.metrics import Metrics


class Evaluator:
    """Evaluates a replica on a dataset. A call is collective.

    Parameters
    ----------
    replica : Replica
    loss : Loss
    loader : Loader
        This rank's share, not shuffled.
    comm : Communicator
        All ranks.
    unit : float, optional
        See `Metrics.of`.
    """

    def __init__(
        self, replica: Replica, loss: Loss, loader: Loader, comm: Communicator, unit: float | None = None
    ) -> None:
        self._executor = replica.evaluator(loss)
        self._task, self._loader, self._comm, self._unit = loss.task, loader, comm, unit

    def __call__(self) -> Metrics:
        """Return the metrics of all samples."""
        totals = np.zeros(len(LossSums._fields))
        with self._loader.dataset.naming_files(), closing(self._loader.epoch(0)) as batches:
            for batch in batches:
                totals += self._executor.run(Feed.of(batch))[0]
        self._comm.allreduce(totals)
        return Metrics.of(LossSums(*totals.tolist()), self._task, self._unit)
