"""A batch through a grid of ranks, and through one process: what tests on threads and on MPI ranks share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpdl_mpi import nn
from hpdl_mpi.base.shares import share
from hpdl_mpi.comm import Communicator
from hpdl_mpi.data import Batch
from hpdl_mpi.nn import Context, Layout, LossSums, MicroBatch, Pool, make_statistics
from hpdl_mpi.optim import Chunks, Optimizer
from hpdl_mpi.parallel import ProcessGrid, Replica, TrainingStep
from hpdl_mpi.parallel.pipeline import Pipeline, Recomputed, Schedule

FEATURES, WIDTH, CLASSES = 5, 6, 3
SEED, EPOCH = 7, 3
NUM_LAYERS = 8
TIED = "2.body.0.weight"


class Remember(nn.Layer):
    """x becomes (x, x, where x > 0): two ways and a mask, which has no gradient."""

    def output_shape(self, input_shape):
        return (input_shape,) * 3

    def forward(self, x, ctx):
        mask = ctx.take(x.shape, x.dtype)
        mask[...] = x > 0
        ctx.retain(x)
        ctx.retain(x)
        return x, x, mask

    def backward_input(self, dy, ctx):
        dx = ctx.take(dy[0].shape, dy[0].dtype)
        np.add(dy[0], dy[1], out=dx)
        return dx


class Recall(nn.Layer):
    """(a, b, mask) becomes a + mask b: a skip connection that may have come across cuts."""

    reads = writes = 3

    def output_shape(self, input_shape):
        return input_shape[0]

    def forward(self, x, ctx):
        y = ctx.take(x[0].shape, x[0].dtype)
        np.multiply(x[1], x[2], out=y)
        np.add(x[0], y, out=y)
        ctx.save(mask=x[2])
        return y

    def backward_input(self, dy, ctx):
        db = ctx.take(dy.shape, dy.dtype)
        np.multiply(dy, ctx.saved["mask"], out=db)
        ctx.drop("mask")
        ctx.retain(dy)
        return dy, db, None


def make_model() -> nn.Sequential:
    """Return eight layers to cut between: with tuples, a skip connection across them, dropout, and a tied weight."""
    return nn.Sequential(
        nn.Linear(WIDTH),
        Remember(),
        nn.Residual(nn.Sequential(nn.Linear(WIDTH), nn.Tanh())),
        nn.Dropout(0.3),
        Recall(),
        nn.Tanh(),
        nn.Linear(WIDTH),
        nn.Linear(CLASSES),
    ).tie("6.weight", to=TIED)


class Keep(Optimizer):
    """Keeps the gradients and changes nothing."""

    lr, slots = 0.0, ("kept",)

    def update(self, params, grads, slots, chunks: Chunks, *, step, lr, scale=1.0, terms=None):
        np.multiply(grads, scale, out=slots[0])
        grads.fill(0)


def make_batch(num_samples: int) -> Batch:
    """Return a batch of random samples, in float64."""
    rng = np.random.default_rng(num_samples)
    return Batch(
        inputs=rng.normal(size=(num_samples, FEATURES)),
        targets=rng.integers(0, CLASSES, num_samples),
        sample_ids=rng.permutation(1000)[:num_samples],
        global_size=num_samples,
        offset=0,
    )


def part_of(batch: Batch, start: int, stop: int) -> Batch:
    """Return some samples of a batch, as a loader shares it out."""
    arrays = (array[start:stop] for array in (batch.inputs, batch.targets, batch.sample_ids))
    return Batch(*arrays, global_size=batch.global_size, offset=0)


@dataclass
class Outcome:
    """What a batch leaves: gradients by full name, sums, and outputs of a prediction."""

    gradients: dict[str, np.ndarray]
    sums: LossSums
    outputs: np.ndarray


def run_alone(batch: Batch, num_microbatches: int, dp: int = 1) -> Outcome:
    """Run the micro-batches of all data-parallel ranks one after the other through the whole model."""
    model = make_model()
    model.build((FEATURES,))
    layout = Layout(model)
    params, gradients = layout.allocate(np.float64), layout.allocate(np.float64)
    layout.initialize(params, SEED)
    layout.bind(model, params, gradients)
    make_statistics(model, params.dtype)
    micro = MicroBatch(Pool(poison=True), SEED)
    context = Context(micro)
    sums, outputs = LossSums(0.0, 0.0, 0.0), [np.zeros((0, CLASSES))]
    for rank in range(dp):
        first, last = share(batch.global_size, rank, dp)
        for number in range(num_microbatches):
            start, stop = share(last - first, number, num_microbatches)
            part = part_of(batch, first + start, first + stop)
            if start == stop:
                continue
            micro.begin(part.sample_ids, epoch=0, training=False)
            outputs.append(model.forward(part.inputs, context).copy())
            micro.begin(part.sample_ids, epoch=EPOCH, training=True)
            y = model.forward(part.inputs, context)
            found, dy = nn.CrossEntropy()(y, part.targets, 1 / batch.global_size, context)
            sums = LossSums(*(one + other for one, other in zip(sums, found, strict=True)))
            model.backward(dy, context)
    return Outcome(layout.views(gradients), sums, np.concatenate(outputs))


def run_grid(
    comm: Communicator,
    dp: int,
    schedule: Schedule,
    cuts: Sequence[int],
    batch: Batch,
    *,
    recompute: Recomputed = "none",
    num_batches: int = 3,
    **settings: Any,
) -> Outcome:
    """Learn from a batch, `num_batches` times over, and then predict, on a grid of pipelines. Collective."""
    grid = ProcessGrid(comm, {"pp": comm.size // dp, "dp": dp})
    try:
        pipeline = Pipeline(grid.axis("pp"), schedule, tuple(cuts), recompute)
        replica = Replica(make_model(), (FEATURES,), Keep(), dtype=np.float64, seed=SEED, pipeline=pipeline)
        replica.pool.poison = True
        step = TrainingStep(replica, nn.CrossEntropy(), grid, **settings)
        mine = part_of(batch, *share(batch.global_size, grid.coordinate("dp"), dp))
        inputs = mine.inputs
        if not pipeline.reads_inputs:
            mine = Batch(None, mine.targets, mine.sample_ids, mine.global_size, 0)
        if not pipeline.reads_targets:
            mine = Batch(mine.inputs, None, mine.sample_ids, mine.global_size, 0)
        held = []
        for _ in range(num_batches):
            report = step(mine, epoch=EPOCH, lr=0.0)
            assert replica.pool.bytes_live == 0, "everything taken from the pool is back"
            held.append(replica.pool.bytes_held)
        assert comm.size > 1 or len(set(held[1:])) <= 1, "a steady step takes no new buffers"
        kept = replica.layout.views(replica.slots["kept"])
        outputs = replica.predict(inputs, mine.sample_ids)
        return Outcome(kept, report.sums, outputs)
    finally:
        grid.free()


def check_outcomes(found: Sequence[Outcome], expected: Outcome, dp: int = 1) -> None:
    """Compare what all ranks of a grid have with what one process has."""
    names = {name for outcome in found for name in outcome.gradients}
    assert names == expected.gradients.keys()
    for outcome in found:
        for name, gradient in outcome.gradients.items():
            if dp == 1 and name != TIED:  # the same micro-batches in the same order: the same roundings
                np.testing.assert_array_equal(gradient, expected.gradients[name], err_msg=name)
            else:
                np.testing.assert_allclose(gradient, expected.gradients[name], rtol=1e-9, atol=1e-15, err_msg=name)
        np.testing.assert_allclose(outcome.sums, expected.sums, rtol=1e-12)
    copies = [outcome.gradients[TIED] for outcome in found if TIED in outcome.gradients]
    for copy in copies[1:]:
        np.testing.assert_array_equal(copy, copies[0], err_msg="copies of a tied weight stay equal")
    # ranks are numbered along dp first; each rank of a pipeline has the outputs of its pipeline's share
    for start in range(0, len(found), dp):
        outputs = np.concatenate([outcome.outputs for outcome in found[start : start + dp]])
        np.testing.assert_array_equal(outputs, expected.outputs)
