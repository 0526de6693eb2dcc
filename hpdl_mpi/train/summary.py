"""What a job's model is made of: layers, shapes, parameters, operations, and the memory of a rank."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np

from hpdl_mpi.base.errors import amended
from hpdl_mpi.data import Loader
from hpdl_mpi.data.shards import find_shards
from hpdl_mpi.kernels.threads import set_threads
from hpdl_mpi.nn import Layer, Loss, Shape, leaves, walk
from hpdl_mpi.parallel import Replica
from hpdl_mpi.parallel.pipeline import (
    Feed,
    Pipeline,
    Schedule,
    StageCost,
    StageCosts,
    complete,
    make_schedule,
    pieces,
    simulate,
    stage_loads,
)
from hpdl_mpi.parallel.replica import refuse_layerwise
from hpdl_mpi.parallel.shards import Sharding
from hpdl_mpi.plan import Task, plan_pipeline, stage_costs
from hpdl_mpi.plan.costs import zero_inputs, zero_targets
from hpdl_mpi.train.choices import make_loss, make_model, make_optimizer
from hpdl_mpi.train.job import Held, Job
from hpdl_mpi.train.run import make_source
from hpdl_mpi.train.source import Source

_WITHOUT_DATA = " Or say with --input-shape what shape samples are stored in, such as 224,224,3: no data are read then."


@dataclass(frozen=True)
class Row:
    """A layer that holds no others.

    Attributes
    ----------
    num_parameters : int
        But for those that are another layer's too, which count there.
    operations : int
        Floating-point operations of one sample's forward pass.
    """

    path: str
    kind: str
    output_shape: Shape
    num_parameters: int
    operations: int


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank while it trains.

    A moving average of the weights counts with the optimizer's state, as does what compressed sums carry over.
    Gradients that are given up once they are summed do not count, so where sums fall behind there are more.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """Return all of it."""
        return self.parameters + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Reading:
    """Bytes of one rank that its training data take, beside those of `Memory`.

    Attributes
    ----------
    buffers : int
        Of the loader: the batches that are read ahead, as stored and as the model sees them.
    cache : int
        Of blocks of files, which fill as they are read: an upper bound.
    """

    buffers: int
    cache: int


@dataclass(frozen=True)
class StageRow:
    """A stage of a pipeline.

    Attributes
    ----------
    rank : int
        Of the pipeline.
    first, last : str
        Paths of its outermost layers.
    held : int
        Micro-batches that it keeps at most.
    memory : Memory
        Activations with those of messages on their way.
    forward, backward : float
        Seconds of a micro-batch.
    """

    rank: int
    first: str
    last: str
    held: int
    memory: Memory
    forward: float
    backward: float


@dataclass(frozen=True)
class Summary:
    """What `summarize` finds.

    Attributes
    ----------
    memory : Memory
        Of a rank; of that with most, if there are several stages.
    reading : Reading
        None if the shape of samples was given in place of data.
    stages : list of StageRow
        None unless there are several.
    bubble : float
        The share of a step in which ranks would wait.
    """

    input_shape: Shape
    rows: list[Row]
    memory: Memory
    reading: Reading | None
    num_microbatches: int
    microbatch_size: int
    stages: list[StageRow]
    bubble: float


def summarize(
    job: Job, num_ranks: int | None = None, pp: int | None = None, stored_shape: Shape | None = None
) -> Summary:
    """Return the summary of a job on `num_ranks` pipelines side by side. Local.

    Data-parallel ranks are taken to be on one machine. Memory is measured, not estimated: micro-batches of zeros pass
    through the model forward and backward; through one layer at a time if there are several stages, for the whole may
    be too large for one rank.

    Parameters
    ----------
    job : Job
    num_ranks : int, optional
        Data-parallel ranks, or pipelines, by default as the job says, or one.
    pp : int, optional
        Ranks of a pipeline, by default as the job says.
    stored_shape : tuple of int, optional
        Of a sample in the data; they are not read then.
    """
    num_ranks = num_ranks or job.parallel.dp or 1
    set_threads(job.parallel.threads or 1)
    source = make_source(job)
    model, loss, optimizer = make_model(job), make_loss(job), make_optimizer(job)
    reading = None
    if stored_shape is None:
        with amended("data.train: ", _WITHOUT_DATA):
            find_shards(source.path)
        input_shape = source.check(model, loss, 1, key="data.train")
        reading = _reading(job, source, loss, num_ranks, tokens=model.reads_tokens)
    else:
        input_shape = source.build(model, loss, stored_shape)
    parallel = job.parallel.accumulating(job.training.accumulate)
    share = -(-job.training.global_batch_size // num_ranks)
    nodes = [0] * num_ranks
    refuse_layerwise(optimizer, parallel.sharded(0, nodes))
    held = parallel.held(len(optimizer.slots), job.training.ema, 0, nodes)
    task = Task(model, input_shape, loss, job.training.dtype, sum(held), parallel.recompute)
    schedule, cuts = plan_pipeline(
        task,
        num_ranks=pp or parallel.pp,
        max_share=share,
        schedule=parallel.schedule,
        num_chunks=parallel.num_chunks,
        num_microbatches=parallel.num_microbatches,
        cuts=parallel.cuts if pp in (None, parallel.pp) else None,
        limit_bytes=parallel.memory_limit,
    )
    size = -(-share // schedule.num_microbatches)
    stages: list[StageRow] = []
    bubble = 0.0
    if schedule.num_stages == 1:
        few = min(2, schedule.num_microbatches)  # those that follow take the memory that these give back
        pipeline = Pipeline(schedule=make_schedule("1f1b", 1, few), recompute=parallel.recompute)
        replica = Replica(model, input_shape, optimizer, dtype=job.training.dtype, seed=job.seed, pipeline=pipeline)
        _learn_zeros(replica, loss, min(share, few * size))
        nbytes = replica.params.nbytes
        gradients = _gradient_bytes(replica, parallel.sharded(0, nodes))
        parameters, state = round(held.parameters * nbytes), round(held.state * nbytes)
        memory = Memory(parameters, gradients, state, replica.pool.bytes_held)
    else:
        costs = stage_costs(task, schedule, size)
        names = list(pieces(model))
        stages = _stages(schedule, cuts, names, costs, held)
        halves = [StageCost(row.forward, row.backward / 2, row.backward / 2) for row in stages]
        bubble = simulate(complete(schedule), halves).bubble_fraction(synchronized=True)
        memory = max(_rank_memories(stages), key=lambda one: one.total)
    return Summary(
        input_shape,
        list(_rows(model, input_shape)),
        memory,
        reading,
        schedule.num_microbatches,
        size,
        stages,
        bubble,
    )


def _reading(job: Job, source: Source, loss: Loss, num_ranks: int, *, tokens: bool) -> Reading:
    with source.open() as dataset:
        loader = Loader(
            dataset,
            global_batch_size=job.training.global_batch_size,
            dp_size=num_ranks,
            transform=source.transform,
            augment=source.augment,
            target_transform=None if loss.task == "classification" else source.target_transform,
            dtype=job.training.dtype,
            tokens=tokens,
            bucket=source.bucket,
            masking=source.masking,
        )
    return Reading(loader.nbytes, dataset.cache_bytes)


def _stages(
    schedule: Schedule, cuts: Sequence[int], names: Sequence[str], costs: StageCosts, held: Held
) -> list[StageRow]:
    rows = []
    loads = stage_loads(complete(schedule))
    for stage, (start, stop) in enumerate(pairwise([0, *cuts, len(names)])):
        fixed = costs.fixed_bytes(start, stop)
        parameters, gradients, state = (round(part * fixed / sum(held)) for part in held)
        memory = Memory(parameters, gradients, state, round(costs.nbytes(stage, start, stop)) - fixed)
        rows.append(
            StageRow(
                schedule.stage_ranks[stage],
                names[start],
                names[stop - 1],
                max(map(sum, loads[stage].peaks)),
                memory,
                costs.forward(start, stop),
                costs.backward(start, stop),
            )
        )
    return rows


def _rank_memories(stages: Sequence[StageRow]) -> list[Memory]:
    """Return what each rank takes, of all its stages."""
    ranks = {row.rank for row in stages}
    return [
        Memory(*(sum(getattr(row.memory, key.name) for row in stages if row.rank == rank) for key in fields(Memory)))
        for rank in sorted(ranks)
    ]


def _gradient_bytes(replica: Replica, sharding: Sharding | None) -> int:
    """Return what gradients take: those of the rank's own chunks, and a bucket, where others are given up."""
    if sharding is None or not sharding.gradients:
        return replica.grads.nbytes
    buckets = replica.buckets(sharding.max_bytes)
    own = sum(stop - start for start, stop in map(sharding.own, buckets))
    return (own + max(stop - start for start, stop in buckets)) * replica.dtype.itemsize


def _learn_zeros(replica: Replica, loss: Loss, size: int) -> None:
    targets = zero_targets(loss, replica.output_shape, size, replica.dtype)
    inputs = zero_inputs(replica.model, replica.input_shape, size, replica.dtype)
    replica.learn(Feed(np.arange(size), inputs, targets), loss)


def _rows(model: Layer, input_shape: Shape) -> Iterator[Row]:
    for layer, shape in leaves(model, input_shape):
        declared = (parameter for inner in walk(layer) for parameter in inner.declared.values())
        count = sum(math.prod(parameter.shape) for parameter in declared if parameter.tied is None)
        yield Row(layer.path, type(layer).__name__, layer.output_shape(shape), count, layer.operations(shape))
