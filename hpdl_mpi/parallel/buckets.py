"""Gradients in buckets, each of which is summed over the data-parallel ranks while backward goes on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from hpdl_mpi.base.trace import Trace, now
from hpdl_mpi.comm import Communicator, Transfer, Work, make_allreduce
from hpdl_mpi.nn import Layer
from hpdl_mpi.nn.layer import walk
from hpdl_mpi.parallel.replica import Replica

BUCKET_BYTES = 25 * 10**6
"""Of a bucket: long enough for full bandwidth, short enough that there is much to do while it is on its way."""


@dataclass
class _Bucket:
    """A slice of the flat gradients.

    Attributes
    ----------
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
    sources: frozenset[int]
    missing: set[int] = field(default_factory=set)
    began: float = 0.0


class GradientBuckets:
    """Sums a replica's gradients over the data-parallel ranks, bucket by bucket. Constructing it is collective.

    Buckets lie in the order in which backward fills them. A bucket's reduction starts when the last weight gradient of
    the step has landed in it and those before it have started, so all ranks start them in one order. It is moved along
    whenever something lands and between a pipeline's actions.

    Parameters
    ----------
    replica : Replica
    dp : Communicator
    max_bytes : int
        Of a bucket, unless one parameter is larger.
    algorithm : str
        See `make_allreduce`.

    Attributes
    ----------
    slices : list of (int, int)
        Where the buckets are in the flat arrays; together they are all of them.
    trace : Trace or None
        Where reductions are recorded, if it is set.
    """

    def __init__(
        self, replica: Replica, dp: Communicator, *, max_bytes: int = BUCKET_BYTES, algorithm: str = "auto"
    ) -> None:
        self.trace: Trace | None = None
        self._layers = {stage: list(walk(replica.stages[stage].model)) for stage in replica.pipeline.own}
        sources = _sources(self._layers)
        self.slices = list(_cut(replica, max_bytes))
        self._buckets: list[_Bucket] = []
        if dp.size > 1:
            for tag, (start, stop) in enumerate(self.slices):
                names = [segment.name for segment in replica.layout.segments if start <= segment.start < stop]
                adding = frozenset().union(*(sources[name] for name in names))
                reduction = make_allreduce(dp, replica.grads[start:stop], algorithm, tag=tag)
                self._buckets.append(_Bucket(start, stop, reduction, adding, set(adding)))
        self._of_layer: dict[int, list[_Bucket]] = {}
        for bucket in self._buckets:
            for layer in bucket.sources:
                self._of_layer.setdefault(layer, []).append(bucket)
        self._started = 0
        self._done = 0

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

    @property
    def reductions(self) -> list[Transfer]:
        """The sums of all buckets."""
        return [bucket.reduction for bucket in self._buckets]

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
        self._done += 1


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


def _cut(replica: Replica, max_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield the slices: whole parameters of one stage, as many as may go together."""
    own, itemsize = replica.pipeline.own, replica.dtype.itemsize
    start, stage_before = 0, None
    for segment in replica.layout.segments:
        stage = min(stage for stage in own if segment.name in replica.stages[stage].names)
        too_large = (segment.stop - start) * itemsize > max_bytes or stage != stage_before
        if segment.start > start and too_large:
            yield start, segment.start
            start = segment.start
        stage_before = stage
    if replica.layout.size:
        yield start, replica.layout.size
