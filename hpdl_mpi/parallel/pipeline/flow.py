"""What is between the computations of a pipeline: outputs on their way forward, gradients on their way back."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from hpdl_mpi.base.trace import Trace, now
from hpdl_mpi.comm import Arena, Communicator, Transfer, Work
from hpdl_mpi.comm.communicator import COLLECTIVE_TAG
from hpdl_mpi.nn import Pool, Shape
from hpdl_mpi.parallel.pipeline.action import Action, Op, Schedule
from hpdl_mpi.parallel.pipeline.slots import Key, SharedSlots, members

Activation = Any
"""What passes from stage to stage: an array, or a tuple of arrays; a gradient in it that does not exist is None."""


class Flow:
    """One direction of what passes between stages, on this rank or from and to others.

    Ranks of one machine put it into each other's memory, see `slots`; others send it. A message is prepared once for
    each buffer and tag and then started again and again: the pool hands the same buffers out in each step.

    Parameters
    ----------
    receive : Op
        RECV_F for outputs, RECV_B for gradients.
    schedule : Schedule
    comm : Communicator
    pool : Pool
        Of the arrays that are received; what has been sent goes back there.
    dtype : dtype
    slots : SharedSlots
    arena : Arena
        Where the slots lie.
    """

    def __init__(
        self,
        receive: Op,
        schedule: Schedule,
        comm: Communicator,
        pool: Pool,
        dtype: DTypeLike,
        slots: SharedSlots,
        arena: Arena,
    ) -> None:
        self._op, self._direction = receive, 1 if receive is Op.RECV_F else -1
        self._comm, self._pool, self._dtype = comm, pool, np.dtype(dtype)
        self._slots, self._arena = slots, arena
        self._ranks, self._num_microbatches = schedule.stage_ranks, schedule.num_microbatches
        self._here: dict[Key, Activation] = {}
        self._leaving: dict[Key, Activation] = {}
        self._coming: dict[Key, tuple[Activation, list[Transfer]]] = {}
        self._sending: list[tuple[Transfer, np.ndarray | None]] = []
        self._held: dict[Key, list[np.ndarray]] = {}
        self._freeing: dict[tuple[int, int], Work] = {}
        self._prepared: dict[tuple[bool, int, int, int, int], Transfer] = {}
        self._nothing = np.empty(0, np.uint8)

    def put(self, value: Activation, key: Key) -> None:
        """Leave a result for a stage of this rank, or for the `send` that follows."""
        several = isinstance(value, tuple)
        arrays = [self._own(array) for array in (value if several else (value,))]
        here = self._ranks[key[0]] == self._comm.rank
        (self._here if here else self._leaving)[key] = tuple(arrays) if several else arrays[0]

    def _own(self, array: np.ndarray | None) -> np.ndarray | None:
        """Return an array of the pool: a layer may hand on what lies in a slot, which is soon another message's."""
        if array is None or self._pool.count(array):
            return array
        copy = self._pool.take(array.shape, array.dtype)
        copy[...] = array
        return copy

    def take(self, key: Key, trace: Trace | None = None) -> Activation:
        """Return what another stage left or sent, and wait for it if need be. The caller releases it."""
        if key in self._here:
            return self._here.pop(key)
        value, transfers = self._coming.pop(key)
        start = now()
        for transfer in transfers:
            transfer.wait()
        if key in self._held:
            self._arena.sync()
        if trace:
            trace.add("wait", str(Action(self._op, *key)), start)
        return value

    def free(self, key: Key) -> None:
        """Note that what a stage took is used no more: the slot in which it lay is free."""
        arrays = self._held.pop(key, None)
        if arrays is not None:
            if self._pool.poison:
                for array in arrays:
                    array.fill(np.nan)
            self._begin(self._nothing, self._ranks[key[0] - self._direction], self._tag(key, freed=True))

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
        arrays = value if isinstance(value, tuple) else (value,)
        dest = self._ranks[key[0]]
        places = self._slots.find(self._op, key, count)
        if places is not None:
            self._fill_slot(key, arrays, places, dest)
            return
        for number, (array, sample) in enumerate(zip(arrays, members(shape), strict=True)):
            if array is None:
                array = self._pool.take((count, *sample), self._dtype)
                array.fill(0)
            self._begin(array, dest, self._tag(key, number))

    def _fill_slot(self, key: Key, arrays: tuple[np.ndarray | None, ...], places: list[np.ndarray], dest: int) -> None:
        slot = key[0], self._slots.number(self._op, key)
        if slot in self._freeing:
            self._freeing.pop(slot).wait()
        for array, place in zip(arrays, places, strict=True):
            place[...] = 0 if array is None else array
            self._pool.release(array)
        self._arena.sync()
        self._begin(self._nothing, dest, self._tag(key))
        freed = self._transfer(self._nothing, dest, self._tag(key, freed=True), sends=False)
        freed.start()
        self._freeing[slot] = freed

    def _begin(self, array: np.ndarray, dest: int, tag: int) -> None:
        transfer = self._transfer(array, dest, tag, sends=True)
        transfer.start()
        self._sending.append((transfer, array))

    def receive(self, key: Key, shape: Shape, count: int) -> None:
        """Begin to receive what a stage of another rank sends; arguments as for `send`."""
        source = self._ranks[key[0] - self._direction]
        arrays = self._slots.find(self._op, key, count)
        if arrays is not None:
            self._held[key] = arrays
            buffers = [self._nothing]
        else:
            buffers = arrays = [self._pool.take((count, *sample), self._dtype) for sample in members(shape)]
        transfers = [
            self._transfer(buffer, source, self._tag(key, number), sends=False) for number, buffer in enumerate(buffers)
        ]
        for transfer in transfers:
            transfer.start()
        self._coming[key] = arrays[0] if members(shape) == (shape,) else tuple(arrays), transfers

    def _transfer(self, array: np.ndarray, peer: int, tag: int, *, sends: bool) -> Transfer:
        key = sends, array.__array_interface__["data"][0], array.nbytes, peer, tag
        if key not in self._prepared:
            prepare = self._comm.send_init if sends else self._comm.recv_init
            self._prepared[key] = prepare(array, peer, tag)
        return self._prepared[key]

    def _tag(self, key: Key, number: int = 0, *, freed: bool = False) -> int:
        """Return a message's tag; those of one tag are sent and received in one order, as is proved of schedules."""
        several = (number * len(self._ranks) + key[0]) * self._num_microbatches + key[1]
        return (4 * several + 2 * freed + (self._direction < 0)) % COLLECTIVE_TAG

    def move_along(self) -> None:
        """Give back the arrays of messages that have left; this also moves the others along."""
        if self._sending:
            self._sending = [entry for entry in self._sending if not self._has_left(*entry)]

    def _has_left(self, transfer: Transfer, array: np.ndarray | None) -> bool:
        left = transfer.test()
        if left:
            self._pool.release(array)
        return left

    def finish(self) -> None:
        """Wait until all messages have left and all slots are free; nothing else may be left."""
        for transfer, array in self._sending:
            transfer.wait()
            self._pool.release(array)
        self._sending.clear()
        for work in self._freeing.values():
            work.wait()
        self._freeing.clear()
        left = [*self._here, *self._leaving, *self._coming, *self._held]
        assert not left, f"nothing is left after a batch, but {left}"
