"""Evaluation: the loss and score of a whole dataset, shared among the pipelines."""

from __future__ import annotations

from contextlib import closing

import numpy as np

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import Communicator
from hpdl_mpi.data import Loader
from hpdl_mpi.nn import Loss, LossSums
from hpdl_mpi.parallel import Replica
from hpdl_mpi.parallel.pipeline import Feed
from hpdl_mpi.train.metrics import Meter, Metrics


class Evaluator:
    """Evaluates a replica on a dataset, its moving average if it has one. A call is collective.

    Parameters
    ----------
    replica : Replica
    loss : Loss
        Reported without what serves training alone, see `Loss.plain`.
    loader : Loader
        This rank's share, not shuffled.
    comm : Communicator
        All ranks.
    meter : Meter
    """

    def __init__(self, replica: Replica, loss: Loss, loader: Loader, comm: Communicator, meter: Meter) -> None:
        self._replica, self._executor = replica, replica.evaluator(loss.plain())
        self._loader, self._comm, self._meter = loader, comm, meter

    def __call__(self) -> Metrics:
        """Return the metrics of all samples.

        Raises
        ------
        InputError
            No target counts: all are to be ignored, or nothing is masked.
        """
        totals = np.zeros(len(LossSums._fields))
        dataset, batches = self._loader.dataset, self._loader.epoch(0)
        with self._replica.averaged(), dataset.naming_files(), closing(batches):
            for batch in batches:
                totals += self._executor.run(Feed.of(batch))[0]
        self._comm.allreduce(totals)
        sums = LossSums(*totals.tolist())
        if not sums.weight:
            raise InputError(
                "no target of these data counts",
                where=dataset.path,
                found="only such as are ignored",
                remedy="evaluate on more data, or mask more tokens of each text (data.masking.rate)",
                shared=True,
            )
        return self._meter(sums)
