"""Gradients in buckets, each of which is summed over the data-parallel ranks while backward goes on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.base.memory import forget
from hpdl_mpi.base.trace import Trace, now
from hpdl_mpi.comm import (
    AUTO,
    Collective,
    Communicator,
    SharedMemory,
    Transfer,
    Work,
    find_wire,
    hierarchical_window_gather,
    hierarchical_window_reduce,
    machine_barrier,
    make_allreduce,
    ring_all_gather,
    ring_reduce_scatter,
    segment_bytes_between,
    shifted,
    window_allreduce,
)
from hpdl_mpi.nn import Layer
from hpdl_mpi.nn.layer import walk
from hpdl_mpi.parallel.feedback import compressed_sum
from hpdl_mpi.parallel.node_memory import NodeMemory
from hpdl_mpi.parallel.replica import Replica
from hpdl_mpi.parallel.shards import BUCKET_BYTES

ONE_COPY = "one_copy"
"""The name of what sums gradients for one copy of the parameters."""


@dataclass
class _Bucket:
    """A slice of the flat gradients.

    Attributes
    ----------
    reduction : Transfer
        Sums it, or this rank's chunk of it.
    gather : Transfer, optional
        Copies the updated parameters from the ranks that have their chunks.
    given_up : list of array
        The gradients of which this rank needs no sums.
    sources : frozenset of int
        The layers that add to it, by `id`.
    missing : set of int
        Those of them that are still to land in this step.
    began : float
        When its reduction did, by `now`.
    """

    start: int
    stop: int
    reduction: Transfer
    gather: Transfer | None
    given_up: list[np.ndarray]
    sources: frozenset[int]
    missing: set[int] = field(default_factory=set)
    began: float = 0.0


class GradientBuckets:
    """Sums a replica's gradients over the data-parallel ranks, bucket by bucket. Constructing it is collective.

    Buckets lie in the order in which backward fills them. A bucket's reduction starts when the last weight gradient of
    the step has landed in it and those before it have started, so all ranks start them in one order. It is moved along
    whenever something lands and between a pipeline's actions. Where ranks share the optimizer's state, each needs the
    sum of its own chunk of a bucket alone, and gets the parameters of the others from those that have updated them.

    Parameters
    ----------
    replica : Replica
    dp : Communicator
    max_bytes : int
        Of a bucket, unless one parameter is larger.
    algorithm, compression : str
        See `make_allreduce`. Ranks that share the update sum their chunks alone under `AUTO` and ``ring``, or in
        `memory`; by another algorithm they sum whole buckets.
    memory : NodeMemory, optional
        Where the replica's arrays lie, and `AUTO` sums them.
    fuses : bool
        Whether the update itself sums what lies there, and buckets have but to wait for the others of the machine.

    Attributes
    ----------
    slices : list of (int, int)
        Where the buckets are in the flat arrays; together they are all of them.
    trace : Trace or None
        Where reductions and gathers are recorded, if it is set.
    """

    def __init__(
        self,
        replica: Replica,
        dp: Communicator,
        *,
        max_bytes: int = BUCKET_BYTES,
        algorithm: str = AUTO,
        compression: str | None = None,
        memory: NodeMemory | None = None,
        fuses: bool = False,
    ) -> None:
        self.trace: Trace | None = None
        self._layers = {stage: list(walk(replica.stages[stage].model)) for stage in replica.pipeline.own}
        sources = _sources(self._layers)
        self.slices = replica.buckets(replica.sharding.max_bytes if replica.sharding else max_bytes)
        self._buckets: list[_Bucket] = []
        try:
            for tag, (start, stop) in enumerate(self.slices if dp.size > 1 else ()):
                names = [segment.name for segment in replica.layout.segments if start <= segment.start < stop]
                adding = frozenset().union(*(sources[name] for name in names))
                sums = _make_sums(dp, replica, (start, stop), tag, algorithm, compression, memory, fuses)
                self._buckets.append(_Bucket(start, stop, *sums, adding, set(adding)))
        except InputError as error:
            if error.shared:  # all ranks are here
                self.free()
            raise
        self._of_layer: dict[int, list[_Bucket]] = {}
        for bucket in self._buckets:
            for layer in bucket.sources:
                self._of_layer.setdefault(layer, []).append(bucket)
        self._started = 0
        self._done = 0
        self._gathering: list[tuple[int, Transfer, float]] = []

    def layer_landed(self, layer: Layer) -> None:
        """Note that a layer's weight gradients have got all of this step; start and move along what can be. Local."""
        for bucket in self._of_layer.get(id(layer), ()):
            bucket.missing.discard(id(layer))
        self.move_along()

    def stage_landed(self, stage: int) -> None:
        """Note the same of all layers of a stage, though none of its micro-batches may have come to them. Local."""
        for layer in self._layers[stage]:
            for bucket in self._of_layer.get(id(layer), ()):
                bucket.missing.discard(id(layer))
        self.move_along()

    def move_along(self) -> None:
        """Start the buckets that are full, in order, and move along those that are under way. Local."""
        while self._started < len(self._buckets) and not self._buckets[self._started].missing:
            bucket = self._buckets[self._started]
            bucket.began = now()
            bucket.reduction.start()
            self._started += 1
        while self._done < self._started and self._buckets[self._done].reduction.test():
            self._finish()
        for bucket in self._buckets[self._done + 1 : self._started]:
            bucket.reduction.test()
        if self._gathering:
            self._move_gathers()

    @property
    def algorithms(self) -> list[str]:
        """What sums each bucket, by name; none if there is one rank alone."""
        return [bucket.reduction.algorithm for bucket in self._buckets]

    @property
    def compressed(self) -> bool:
        """Whether any bucket is summed in fewer bytes than it has."""
        return any(bucket.reduction.compressed for bucket in self._buckets)

    @property
    def reductions(self) -> list[Transfer]:
        """The sums of all buckets, and what collects their parameters."""
        gathers = [bucket.gather for bucket in self._buckets if bucket.gather]
        return [*(bucket.reduction for bucket in self._buckets), *gathers]

    def free(self) -> None:
        """Give back the memory that ranks share. Collective."""
        for reduction in self.reductions:
            reduction.free()

    def gather(self, number: int) -> None:
        """Begin to collect a bucket's parameters, if ranks share their update: this rank's chunk is updated. Local."""
        if self._buckets and (gather := self._buckets[number].gather):
            gather.start()
            self._gathering.append((number, gather, now()))

    def wait_gathered(self) -> None:
        """Wait until all parameters are there. Collective."""
        while self._gathering:
            self._gathering[0][1].wait()
            self._move_gathers()

    def _move_gathers(self) -> None:
        """Move along what collects parameters, and let go of what is over. Local."""
        under_way = []
        for number, gather, began in self._gathering:
            if not gather.test():
                under_way.append((number, gather, began))
            elif self.trace:
                self.trace.add("gather", f"bucket {number}", began)
        self._gathering = under_way

    def wait(self) -> Iterator[tuple[int, int]]:
        """Yield each slice when it is summed, in order, while later ones are still on their way. Collective."""
        assert self._started == len(self._buckets), "all layers have landed"
        for number, (start, stop) in enumerate(self.slices):
            while self._buckets and self._done <= number:
                self._buckets[self._done].reduction.wait()
                self._finish()
            yield start, stop
            self.move_along()
        self._started = self._done = 0
        for bucket in self._buckets:
            bucket.missing.update(bucket.sources)

    def _finish(self) -> None:
        bucket = self._buckets[self._done]
        if self.trace:
            self.trace.add("reduce", f"bucket {self._done}", bucket.began)
        for others in bucket.given_up:
            forget(others)
        self._done += 1


def _make_sums(
    dp: Communicator,
    replica: Replica,
    bucket: tuple[int, int],
    tag: int,
    algorithm: str,
    compression: str | None,
    memory: NodeMemory | None,
    fuses: bool,
) -> tuple[Transfer, Transfer | None, list[np.ndarray]]:
    """Return what sums a bucket, what collects its parameters, if ranks share their update, and what they give up."""
    (start, stop), sharding = bucket, replica.sharding
    gradients, label = replica.grads[start:stop], f"gradients, bucket {tag}"
    if replica.feedback:
        kept = replica.feedback
        return compressed_sum(dp, kept, gradients, start, algorithm=algorithm, tag=tag, label=label), None, []
    if memory and (sharding.one_copy if sharding else algorithm == AUTO):
        is_last = stop == replica.layout.size
        gather = _meet(dp, replica, memory, bucket, tag, "parameters") if sharding and is_last else None
        return _sum_in_window(dp, replica, memory, bucket, tag, compression, fuses), gather, []
    if sharding is None:
        return make_allreduce(dp, gradients, algorithm, tag=tag, label=label, compression=compression), None, []
    first, last = sharding.own(bucket)
    given_up = [replica.grads[start:first], replica.grads[last:stop]] if sharding.gradients else []
    reduction = _sum_for_chunks(dp, gradients, algorithm, tag, label, compression)
    return reduction, _gather_chunks(dp, replica.params[start:stop], tag), given_up


def _sum_for_chunks(
    dp: Communicator, gradients: np.ndarray, algorithm: str, tag: int, label: str, compression: str | None
) -> Transfer:
    """Return what sums this rank's chunk of a bucket; all of it, where that is not done by a ring."""
    if algorithm not in (AUTO, "ring"):
        return make_allreduce(dp, gradients, algorithm, tag=tag, label=label, compression=compression)
    return Collective(
        dp,
        ring_reduce_scatter(dp.size, gradients.size, dp.rank),
        gradients,
        tag=tag,
        segment_bytes=segment_bytes_between(dp),
        label=label,
        wire=find_wire(compression, gradients.dtype),
        algorithm="ring",
    )


def _gather_chunks(dp: Communicator, params: np.ndarray, tag: int) -> Transfer:
    """Return what collects the chunks of a bucket's parameters from the ranks that have updated them."""
    program = ring_all_gather(dp.size, params.size, dp.rank)
    label = f"parameters, bucket {tag}"
    return Collective(dp, program, params, tag=tag, segment_bytes=segment_bytes_between(dp), label=label)


def _sum_in_window(
    dp: Communicator,
    replica: Replica,
    memory: NodeMemory,
    bucket: tuple[int, int],
    tag: int,
    compression: str | None,
    fuses: bool,
) -> Transfer:
    """Return what sums a bucket where it lies in memory that ranks of a machine share.

    All get the sums, or, where they have one copy of the parameters, their chunk of it alone.
    """
    start, stop = bucket
    size, nodes, rank = stop - start, dp.nodes, dp.rank
    if fuses:
        return _meet(dp, replica, memory, bucket, tag, "gradients")
    if dp.num_nodes == 1 and replica.sharding is None:
        program = window_allreduce(dp.size, size, rank)
    else:
        program = hierarchical_window_reduce(nodes, size, rank)
        # With one copy a rank zeroes what others have read before it goes on.
        program += (hierarchical_window_gather if replica.sharding is None else machine_barrier)(nodes, size, rank)
    return Collective(
        dp,
        shifted(program, start),
        replica.grads,
        tag=tag,
        segment_bytes=segment_bytes_between(dp),
        shared=SharedMemory(dp, replica.layout.size, replica.dtype, memory.window),
        label=f"gradients, bucket {tag}",
        wire=find_wire(compression, replica.dtype),
        algorithm=ONE_COPY if replica.sharding else "window" if dp.num_nodes == 1 else "hierarchical_window",
        num_elements=size,
    )


def _meet(
    dp: Communicator, replica: Replica, memory: NodeMemory, bucket: tuple[int, int], tag: int, what: str
) -> Transfer:
    """Return a wait of the ranks of a machine for one another."""
    shared = SharedMemory(dp, 0, replica.dtype, memory.window)
    program = machine_barrier(dp.nodes, 0, dp.rank)
    return Collective(
        dp,
        program,
        replica.grads,
        tag=tag,
        shared=shared,
        label=f"{what}, bucket {tag}",
        algorithm=ONE_COPY,
        num_elements=bucket[1] - bucket[0],
    )


def progress_of(works: Iterable[Work]) -> int | None:
    """Return what grows whenever one of several works gets further through shared memory, see `Work.progress`."""
    known = [work.progress for work in works if work.progress is not None]
    return sum(known) if known else None


def _sources(layers: dict[int, list[Layer]]) -> dict[str, set[int]]:
    """Return the layers that add to each parameter's gradient, by `id`: several where it is tied."""
    sources: dict[str, set[int]] = {}
    for layer in (layer for own in layers.values() for layer in own):
        for parameter in layer.declared.values():
            sources.setdefault(layer.full_name(parameter), set()).add(id(layer))
    return sources
