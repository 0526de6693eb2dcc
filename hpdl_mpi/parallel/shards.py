"""Which part of the flat arrays a rank keeps the optimizer's state for, where data-parallel ranks share that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hpdl_mpi.base.shares import share
from hpdl_mpi.nn import Layout

Run = tuple[int, int]
"""(start, stop) of elements of the flat arrays."""

BUCKET_BYTES = 25 * 10**6
"""Of a bucket: long enough for full bandwidth, short enough that there is much to do while it is on its way."""

_LEAST_BYTES = 10**6
"""Of the buckets that get smaller and smaller."""


def cut_buckets(layout: Layout, stages: Mapping[str, int], itemsize: int, max_bytes: int) -> Iterator[Run]:
    """Yield the buckets of a layout, in its order: whole parameters of one stage, as many as may go together.

    Each has at most half of what is left, so that little is on its way when backward ends.

    Parameters
    ----------
    layout : Layout
    stages : mapping of str to int
        The first stage that has each parameter.
    itemsize : int
    max_bytes : int
        Of a bucket, unless one parameter is larger.
    """
    start, stage_before = 0, None
    for segment in layout.segments:
        stage = stages[segment.name]
        half = max(_LEAST_BYTES, (layout.size - start) * itemsize / 2)
        too_large = (segment.stop - start) * itemsize > min(max_bytes, half) or stage != stage_before
        if segment.start > start and too_large:
            yield start, segment.start
            start = segment.start
        stage_before = stage
    if layout.size:
        yield start, layout.size


@dataclass(frozen=True)
class Sharding:
    """How data-parallel ranks share the optimizer's state, and gradients: each keeps one chunk of every bucket.

    ZeRO, stages 1 and 2: Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter models"
    (2020).

    Attributes
    ----------
    index, count : int
        This rank's number among them, and how many they are.
    max_bytes : int
        Of a bucket.
    gradients : bool
        Whether the other chunks of gradients are given up as soon as they are summed.
    one_copy : bool
        Whether they are the ranks of a machine, which have one copy of the parameters.
    copy, num_copies : int
        How many ranks keep each chunk, as other machines do the same, and this one's number among those.
    """

    index: int
    count: int
    max_bytes: int = BUCKET_BYTES
    gradients: bool = False
    one_copy: bool = False
    copy: int = 0
    num_copies: int = 1

    @property
    def key(self) -> str:
        """The setting that asks for it."""
        return "parallel.shared_memory = 'parameters'" if self.one_copy else "parallel.sharding"

    def own(self, bucket: Run) -> Run:
        """Return this rank's chunk of a bucket."""
        start, stop = bucket
        first, last = share(stop - start, self.index, self.count)
        return start + first, start + last
