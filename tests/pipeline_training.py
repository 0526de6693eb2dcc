"""A batch through a pipeline, and through one process: what tests on threads and on MPI ranks share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpdl_mpi import nn
from hpdl_mpi.base.shares import share
from hpdl_mpi.comm import Communicator
from hpdl_mpi.nn import Context, Layout, LossSums, MicroBatch, Pool
from hpdl_mpi.parallel.pipeline import Executor, Feed, Schedule, complete, cut, forward_only

FEATURES, CLASSES = 5, 3
SEED = 7


def make_model() -> nn.Sequential:
    """Return eight layers to cut between: dropout and a skip connection inside a stage, layers without parameters."""
    return nn.Sequential(
        nn.Linear(6),
        nn.Tanh(),
        nn.Residual(nn.Sequential(nn.Linear(6), nn.Tanh())),
        nn.Dropout(0.3),
        nn.Linear(4),
        nn.Tanh(),
        nn.Linear(7),
        nn.Linear(CLASSES),
    )


NUM_LAYERS = 8


def make_batch(num_samples: int) -> Feed:
    """Return a batch of random samples, in float64."""
    rng = np.random.default_rng(num_samples)
    return Feed(
        sample_ids=rng.permutation(1000)[:num_samples],
        inputs=rng.normal(size=(num_samples, FEATURES)),
        targets=rng.integers(0, CLASSES, num_samples),
        epoch=3,
        scale=1 / max(1, num_samples),
    )


@dataclass
class Outcome:
    """What a batch leaves: gradients by full name, sums, and outputs of a prediction."""

    gradients: dict[str, np.ndarray]
    sums: LossSums
    outputs: list[np.ndarray]


def run_alone(feed: Feed, num_microbatches: int) -> Outcome:
    """Run the micro-batches of a batch one after the other through the whole model."""
    model = make_model()
    model.build((FEATURES,))
    layout, gradients = _bind(model)
    pool = Pool(poison=True)
    batch = MicroBatch(pool, SEED)
    context = Context(batch)
    sums, outputs = LossSums(0.0, 0.0, 0.0), []
    for number in range(num_microbatches):
        part = slice(*share(len(feed.sample_ids), number, num_microbatches))
        if part.start == part.stop:
            continue
        batch.begin(feed.sample_ids[part], epoch=0, training=False)
        outputs.append(model.forward(feed.inputs[part], context).copy())
        batch.begin(feed.sample_ids[part], epoch=feed.epoch, training=True)
        y = model.forward(feed.inputs[part], context)
        found, dy = nn.CrossEntropy()(y, feed.targets[part], feed.scale, context)
        sums = LossSums(*(one + other for one, other in zip(sums, found, strict=True)))
        model.backward(dy, context)
    return Outcome(layout.views(gradients), sums, outputs)


def run_pipeline(comm: Communicator, schedule: Schedule, cuts: list[int], feed: Feed, batches: int = 3) -> Outcome:
    """Run a batch, `batches` times over, through this rank's stages; then predict. Collective."""
    stages = cut(make_model(), (FEATURES,), cuts)
    own = [stage for stage, rank in zip(stages, schedule.stage_ranks, strict=True) if rank == comm.rank]
    layout, gradients = _bind(nn.Sequential(**{k: v for stage in own for k, v in stage.model.children.items()}))
    pool = Pool(poison=True)
    reduced: list[int] = []
    settings = {"pool": pool, "dtype": np.float64, "seed": SEED}
    executor = Executor(complete(schedule), stages, comm, loss=nn.CrossEntropy(), reduce=reduced.append, **settings)
    held = 0
    for number in range(batches):
        gradients.fill(0)
        sums, _ = executor.run(feed)
        assert pool.bytes_live == 0, "everything taken from the pool is back"
        if comm.size == 1 and number == 2:
            assert pool.bytes_held == held, "a steady step takes no new buffers"
        held = pool.bytes_held
    assert reduced == [s for _ in range(batches) for s in _reduction_order(schedule, comm.rank)]
    predict = complete(forward_only(schedule.stage_ranks, schedule.num_microbatches))
    _, outputs = Executor(predict, stages, comm, loss=None, **settings).run(feed)
    return Outcome(layout.views(gradients), sums, outputs)


def _reduction_order(schedule: Schedule, rank: int) -> list[int]:
    """Return this rank's stages in the order of their last weight gradients."""
    program = complete(schedule).programs[rank]
    last = {action.stage: index for index, action in enumerate(program) if action.op in ("W", "B")}
    return sorted(last, key=lambda stage: last[stage])


def _bind(model: nn.Layer) -> tuple[Layout, np.ndarray]:
    layout = Layout(model)
    params, gradients = layout.allocate(np.float64), layout.allocate(np.float64)
    layout.initialize(params, SEED)
    layout.bind(model, params, gradients)
    return layout, gradients


def check_outcomes(found: list[Outcome], expected: Outcome) -> None:
    """Compare what all ranks of a pipeline have with what one process has."""
    gradients = {name: array for outcome in found for name, array in outcome.gradients.items()}
    assert gradients.keys() == expected.gradients.keys()
    for name, array in expected.gradients.items():
        # the same micro-batches in the same order: the same roundings
        np.testing.assert_array_equal(gradients[name], array, err_msg=name)
    assert [sum(values) for values in zip(*(outcome.sums for outcome in found), strict=True)] == list(expected.sums)
    outputs = [output for outcome in found for output in outcome.outputs]
    assert len(outputs) == len(expected.outputs)
    for one, other in zip(outputs, expected.outputs, strict=True):
        np.testing.assert_array_equal(one, other)
