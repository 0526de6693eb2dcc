"""What a job's model is made of: layers, shapes, parameters, operations, and the memory of a rank."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hpdl_mpi.data import Loader
from hpdl_mpi.kernels.threads import set_threads
from hpdl_mpi.nn import Layer, Loss, Sequential, Shape, walk
from hpdl_mpi.parallel import Replica
from hpdl_mpi.parallel.pipeline import Feed
from hpdl_mpi.plan.costs import zero_targets
from hpdl_mpi.train.choices import make_loss, make_model, make_optimizer
from hpdl_mpi.train.job import Job
from hpdl_mpi.train.run import make_source


@dataclass(frozen=True)
class Row:
    """A layer that holds no others.

    Attributes
    ----------
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
    """Bytes of one rank while it trains."""

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
class Summary:
    """What `summarize` finds."""

    input_shape: Shape
    rows: list[Row]
    memory: Memory
    reading: Reading
    microbatch_size: int


def summarize(job: Job, num_ranks: int) -> Summary:
    """Return the summary of a job on `num_ranks` data-parallel ranks. Local.

    Memory is measured, not estimated: one micro-batch of zeros passes through the model, forward and backward.
    """
    set_threads(job.parallel.threads or 1)
    source = make_source(job)
    model, loss = make_model(job), make_loss(job)
    with source.open() as dataset:
        loader = Loader(
            dataset,
            global_batch_size=job.training.global_batch_size,
            dp_size=num_ranks,
            transform=source.transform,
            target_transform=None if loss.task == "classification" else source.target_transform,
            dtype=job.training.dtype,
        )
    input_shape, reading = loader.input_shape, Reading(loader.nbytes, dataset.cache_bytes)
    replica = Replica(model, input_shape, make_optimizer(job), dtype=job.training.dtype, seed=job.seed)
    size = -(-job.training.global_batch_size // (num_ranks * job.training.accumulate))
    _learn_zeros(replica, loss, size)
    memory = Memory(
        parameters=replica.params.nbytes,
        gradients=replica.grads.nbytes,
        optimizer=sum(slot.nbytes for slot in replica.slots.values()),
        activations=replica.pool.bytes_held,
    )
    return Summary(input_shape, list(_rows(model, input_shape)), memory, reading, size)


def _learn_zeros(replica: Replica, loss: Loss, size: int) -> None:
    targets = zero_targets(loss, replica.output_shape, size, replica.dtype)
    replica.learn(Feed(np.arange(size), np.zeros((size, *replica.input_shape), replica.dtype), targets), loss)


def _rows(layer: Layer, input_shape: Shape) -> Iterator[Row]:
    """Yield the layers inside in order; only `Sequential` passes one layer's output on to the next."""
    if not layer.children:
        count = sum(math.prod(parameter.shape) for inner in walk(layer) for parameter in inner.declared.values())
        shape = layer.output_shape(input_shape)
        yield Row(layer.path, type(layer).__name__, shape, count, layer.operations(input_shape))
    for child in layer.children.values():
        yield from _rows(child, input_shape)
        if isinstance(layer, Sequential):
            input_shape = child.output_shape(input_shape)
