"""Micro-batches that a whole model learns from by making again the calls that it made for one of the same shapes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from functools import cached_property
from threading import get_ident
from typing import Any

import numpy as np

from hpdl_mpi.kernels.jit import thread_count
from hpdl_mpi.kernels.recording import Recording, recording
from hpdl_mpi.nn import Layer, Pool, is_replayable, walk
from hpdl_mpi.parallel.pipeline.action import Action, Op
from hpdl_mpi.parallel.pipeline.feed import Feed

_MOST = 16
"""Recordings at a time: each has a copy of its samples. Where shapes are many, the first ones keep theirs."""


class Replay:
    """The recorded actions of a micro-batch, and what they read.

    Its arrays of the pool lie where they lay when nobody else held any. So it holds all of that memory from its first
    action to its last.

    Parameters
    ----------
    feed : Feed
        Like those that it will get; copied.
    pool : Pool
    """

    def __init__(self, feed: Feed, pool: Pool) -> None:
        self.feed = feed.copy()
        self._pool = pool
        self._recordings: dict[Op, Recording] = {}
        self._extent: tuple[int, ...] = ()
        self._held: tuple[np.ndarray, ...] = ()

    def begin(self, feed: Feed) -> None:
        """Get ready for the actions of a micro-batch."""
        for own, array in zip(self.feed.arrays, feed.arrays, strict=True):
            own[...] = array
        if self._extent:
            self._held = self._pool.take_extent(self._extent)
        else:
            self._pool.measure_extent()

    def perform(self, op: Op, compute: Callable[[], Any]) -> Any:
        """Return what an action of the micro-batch returns: at first it is computed, with `feed`."""
        if self._extent:
            return self._recordings[op].replay()
        with recording() as self._recordings[op]:
            return compute()

    def end(self) -> None:
        """Note that the last action is done."""
        if self._extent:
            self._pool.release(self._held)
        else:
            self._extent = self._pool.extent


def is_one_by_one(program: Iterable[Action]) -> bool:
    """Return whether a rank is done with each micro-batch before it begins the next."""
    order = [action.microbatch for action in program if action.op is not Op.REDUCE]
    return order == sorted(order)


class Replays:
    """The recordings of an executor that has a whole model, and one micro-batch at a time.

    A recording serves micro-batches of one shape, type and scale in one epoch, which belongs to the keys of dropout,
    where the layers find the same parameters and use as many threads; and it serves the Python thread that made it,
    whose workspace products have. Settings of layers, such as a rate of dropout, are those it was made with.

    Parameters
    ----------
    model : Layer
    pool : Pool
    """

    def __init__(self, model: Layer, pool: Pool) -> None:
        self._model, self._pool = model, pool
        self._learner = next((layer for layer in walk(model) if layer.declared), None)
        self._found: dict[Hashable, Replay] = {}
        self._epoch = 0

    def begin(self, feed: Feed) -> Replay | None:
        """Return what performs the actions of a micro-batch, or None if they are to be computed without."""
        if not self._possible or self._pool.bytes_live:
            return None
        if feed.epoch != self._epoch:
            self._found.clear()
            self._epoch = feed.epoch
        shapes = ((array.shape, array.dtype) for array in feed.arrays)
        key = self._address(), feed.scale, thread_count(), get_ident(), *shapes
        replay = self._found.get(key)
        if replay is None:
            if len(self._found) == _MOST:
                return None
            replay = self._found[key] = Replay(feed, self._pool)
        replay.begin(feed)
        return replay

    def clear(self) -> None:
        """Forget all recordings."""
        self._found.clear()

    @cached_property
    def _possible(self) -> bool:
        return is_replayable(self._model)

    def _address(self) -> int:
        """Return where parameters lie: that they are others for a while is a reason to look for another recording."""
        if self._learner is None:
            return 0
        first: np.ndarray = next(iter(self._learner.params.values()))
        return int(first.__array_interface__["data"][0])
