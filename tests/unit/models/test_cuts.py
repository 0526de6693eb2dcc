"""Networks for images are cut into the stages of a pipeline, which trains them as one rank does, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from hpdl_mpi.comm import Communicator, SingleCommunicator, run_threads
from hpdl_mpi.data import Batch
from hpdl_mpi.models import alexnet, mobilenet_v2, resnet20, vgg11_bn
from hpdl_mpi.nn import CrossEntropy, Layer
from hpdl_mpi.optim import SGD
from hpdl_mpi.parallel import ProcessGrid, Replica, TrainingStep
from hpdl_mpi.parallel.pipeline import Pipeline, make_schedule

CLASSES = 3
BATCH = 6
MICRO_BATCHES = 2


class Cut(NamedTuple):
    """A model, the height and width of its images, and the number of the layer at which the second stage begins."""

    make: Callable[[], Layer]
    size: int
    at: int


CUTS = {
    "alexnet, behind the features": Cut(lambda: alexnet(CLASSES, hidden=8), 63, 13),
    "mobilenet_v2": Cut(lambda: mobilenet_v2(CLASSES, width_mult=0.35), 32, 9),
    "mobilenet_v2, in front of the head": Cut(lambda: mobilenet_v2(CLASSES, width_mult=0.35), 32, 19),
    "resnet20": Cut(lambda: resnet20(CLASSES), 16, 5),
    "vgg11_bn, in front of a pooling": Cut(lambda: vgg11_bn(CLASSES, hidden=8), 32, 7),
}


class Outcome(NamedTuple):
    """What two steps leave on a rank: parameters and statistics by full name, and predictions."""

    arrays: dict[str, np.ndarray]
    predictions: np.ndarray


def train(comm: Communicator, cut: Cut) -> Outcome:
    """Take two steps on a pipeline of all ranks, and predict. Collective."""
    grid = ProcessGrid(comm, {"pp": comm.size, "dp": 1})
    try:
        schedule = make_schedule("1f1b", comm.size, MICRO_BATCHES)
        pipeline = Pipeline(grid.axis("pp"), schedule, (cut.at,) if comm.size > 1 else ())
        shape = (cut.size, cut.size, 3)
        replica = Replica(cut.make(), shape, SGD(0.1), dtype=np.float64, seed=0, pipeline=pipeline)
        learn = TrainingStep(replica, CrossEntropy(), grid)
        rng = np.random.default_rng(0)
        x, ids = rng.normal(size=(BATCH, *shape)), np.arange(BATCH) + 100
        targets = rng.integers(CLASSES, size=BATCH) if pipeline.reads_targets else None
        inputs = x if pipeline.reads_inputs else None
        for epoch in range(2):
            learn(Batch(inputs, targets, ids, BATCH, 0), epoch=epoch, lr=0.1)
        arrays = replica.layout.views(replica.params) | replica.statistics_layout.views(replica.statistics)
        return Outcome(arrays, replica.predict(x, ids))
    finally:
        grid.free()


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_two_stages_train_as_one_rank_does(cut: Cut) -> None:
    whole = train(SingleCommunicator(), cut)
    first, second = run_threads(2, lambda comm: train(comm, cut))
    assert first.arrays
    assert second.arrays
    assert not first.arrays.keys() & second.arrays.keys()
    together = first.arrays | second.arrays
    assert together.keys() == whole.arrays.keys()
    for name, values in whole.arrays.items():
        np.testing.assert_array_equal(together[name], values, err_msg=name)
    for part in (first, second):
        np.testing.assert_array_equal(part.predictions, whole.predictions)
