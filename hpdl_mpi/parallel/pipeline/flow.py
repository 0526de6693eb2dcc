"""What is between the computations of a pipeline: outputs on their way forward, gradients on their way back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from hpdl_mpi.base.trace import Trace, now
from hpdl_mpi.comm import Communicator, Transfer
from hpdl_mpi.comm.communicator import COLLECTIVE_TAG
from hpdl_mpi.nn import Pool, Shape
from hpdl_mpi.parallel.pipeline.action import Action, Op, Schedule

Key = tuple[int, int]
"""The stage that something is for, and its micro-batch."""

Activation = Any
"""What passes from stage to stage: an array, or a tuple of arrays; a gradient in it that does not exist is None."""


def members(shape: Shape) -> tuple[Shape, ...]:
    """Return the shapes of the arrays that an activation consists of."""
    several = bool(shape) and isinstance(shape[0], tuple)
    return shape if several else (shape,)  # type: ignore[return-value]


class Flow:
    """One direction of what passes between stages, on this rank or from and to others.

    A message is prepared once for each buffer and tag and then started again and again: the pool hands the same
    buffers out in each step.

    Parameters
    ----------
    direction : int
        1 from each stage to the next, -1 to the one before.
    schedule : Schedule
    comm : Communicator
    pool : Pool
        Of the arrays that are received; what has been sent goes back there.
    dtype : dtype
    """

    def __init__(self, direction: int, schedule: Schedule, comm: Communicator, pool: Pool, dtype: DTypeLike) -> None:
        self._direction, self._comm, self._pool, self._dtype = direction, comm, pool, np.dtype(dtype)
        self._ranks, self._num_microbatches = schedule.stage_ranks, schedule.num_microbatches
        self._here: dict[Key, Activation] = {}
        self._leaving: dict[Key, Activation] = {}
        self._coming: dict[Key, tuple[Activation, list[Transfer]]] = {}
        self._sending: list[tuple[Transfer, np.ndarray]] = []
        self._prepared: dict[tuple[bool, int, int, int, int], Transfer] = {}

    def put(self, value: Activation, key: Key) -> None:
        """Leave a result for a stage of this rank, or for the `send` that follows."""
        here = self._ranks[key[0]] == self._comm.rank
        (self._here if here else self._leaving)[key] = value

    def take(self, key: Key, trace: Trace | None = None) -> Activation:
        """Return what another stage left or sent, and wait for it if need be. The caller releases it."""
        if key in self._here:
            return self._here.pop(key)
        value, transfers = self._coming.pop(key)
        start = now()
        for transfer in transfers:
            transfer.wait()
        if trace:
            trace.add("wait", str(Action(Op.RECV_F if self._direction > 0 else Op.RECV_B, *key)), start)
        return value

    def send(self, key: Key, shape: Shape, count: int) -> None:
        """Begin to send what was put for a stage of another rank; what is None goes as zeros.

        Parameters
        ----------
        key : (int, int)
        shape : tuple of int, or tuple of such
            Of one sample.
        count : int
            Samples of the micro-batch.
        """
        value = self._leaving.pop(key)
        dest = self._ranks[key[0]]
        arrays = value if isinstance(value, tuple) else (value,)
        for number, (array, sample) in enumerate(zip(arrays, members(shape), strict=True)):
            if array is None:
                array = self._pool.take((count, *sample), self._dtype)
                array.fill(0)
            transfer = self._transfer(array, dest, self._tag(key, number), sends=True)
            transfer.start()
            self._sending.append((transfer, array))

    def receive(self, key: Key, shape: Shape, count: int) -> None:
        """Begin to receive what a stage of another rank sends; arguments as for `send`."""
        source = self._ranks[key[0] - self._direction]
        arrays, transfers = [], []
        for number, sample in enumerate(members(shape)):
            array = self._pool.take((count, *sample), self._dtype)
            transfer = self._transfer(array, source, self._tag(key, number), sends=False)
            transfer.start()
            arrays.append(array)
            transfers.append(transfer)
        self._coming[key] = arrays[0] if members(shape) == (shape,) else tuple(arrays), transfers

    def _transfer(self, array: np.ndarray, peer: int, tag: int, *, sends: bool) -> Transfer:
        key = sends, array.__array_interface__["data"][0], array.nbytes, peer, tag
        if key not in self._prepared:
            prepare = self._comm.send_init if sends else self._comm.recv_init
            self._prepared[key] = prepare(array, peer, tag)
        return self._prepared[key]

    def _tag(self, key: Key, number: int) -> int:
        """Return a message's tag; those of one tag are sent and received in one order, as is proved of schedules."""
        several = number * len(self._ranks) + key[0]
        return (2 * (several * self._num_microbatches + key[1]) + (self._direction < 0)) % COLLECTIVE_TAG

    def move_along(self) -> None:
        """Give back the arrays of messages that have left; this also moves the others along."""
        if self._sending:
            self._sending = [entry for entry in self._sending if not self._has_left(*entry)]

    def _has_left(self, transfer: Transfer, array: np.ndarray) -> bool:
        left = transfer.test()
        if left:
            self._pool.release(array)
        return left

    def finish(self) -> None:
        """Wait until all messages have left; nothing else may be left."""
        for transfer, array in self._sending:
            transfer.wait()
            self._pool.release(array)
        self._sending.clear()
        left: Sequence[Key] = [*self._here, *self._leaving, *self._coming]
        assert not left, f"nothing is left after a batch, but {left}"
