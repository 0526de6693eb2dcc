"""What is between the computations of a pipeline: outputs on their way forward, gradients on their way back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from hpdl_mpi.base.trace import Trace, now
from hpdl_mpi.comm import Arena, Communicator, Transfer, Work
from hpdl_mpi.comm.communicator import COLLECTIVE_TAG
from hpdl_mpi.nn import Pool, Shape, member_shapes
from hpdl_mpi.parallel.pipeline.action import Action, Op, Schedule
from hpdl_mpi.parallel.pipeline.slots import Key, SharedSlots

Activation = Any
"""What passes from stage to stage: an array, or a tuple of arrays; a gradient in it that does not exist is None."""

_FREED = 1 << 14
"""From here on tags are of messages that say that a slot is free; those below are of what goes from stage to stage."""


def _freed_tag(slot: int) -> int:
    return _FREED + slot % (COLLECTIVE_TAG - _FREED)


@dataclass(frozen=True)
class _Filling:
    """What waits for its slot to become free."""

    key: Key
    arrays: tuple[np.ndarray | None, ...]
    places: list[np.ndarray]
    dest: int


class _Waiting(Work):
    """Some work, with all else that this rank has under way moved along meanwhile."""

    def __init__(self, work: Work, move_along: Callable[[], int | None]) -> None:
        self.comm, self.label = work.comm, work.label
        self._work, self._move_along = work, move_along
        self._progress: int | None = None

    def test(self) -> bool:
        over = self._work.test()
        if not over:
            self._progress = self._move_along()
        return over

    @property
    def progress(self) -> int | None:
        return self._progress

    @property
    def peers(self) -> Sequence[int]:
        return self._work.peers

    def __str__(self) -> str:
        return str(self._work)


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
    progress : callable
        Moves along whatever the rank has under way; called while it waits. Returns a `Work.progress`.
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
        progress: Callable[[], int | None],
    ) -> None:
        self._op, self._direction = receive, 1 if receive is Op.RECV_F else -1
        self._comm, self._pool, self._dtype = comm, pool, np.dtype(dtype)
        self._slots, self._arena, self._progress = slots, arena, progress
        self._ranks, self._num_microbatches = schedule.stage_ranks, schedule.num_microbatches
        self._here: dict[Key, Activation] = {}
        self._leaving: dict[Key, Activation] = {}
        self._coming: dict[Key, tuple[Activation, list[Transfer]]] = {}
        self._sending: list[tuple[Transfer, np.ndarray | None]] = []
        self._held: dict[Key, list[np.ndarray]] = {}
        self._filling: list[_Filling] = []
        self._freeing: dict[int, Work] = {}
        self._prepared: dict[tuple[bool, int, int, int, int], Transfer] = {}
        self._signals: dict[tuple[bool, int, int], Transfer] = {}
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
            _Waiting(transfer, self._progress).wait()
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
            slot = self._slots.number(self._op, key)
            self._signal(self._ranks[key[0] - self._direction], _freed_tag(slot), f"release of {self._label(key)}")

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
        places = self._slots.find(self._op, key, shape, count)
        if places is not None:
            self._filling.append(_Filling(key, arrays, places, dest))
            self._fill_slots()
            return
        for number, (array, sample) in enumerate(zip(arrays, member_shapes(shape), strict=True)):
            if array is None:
                array = self._pool.take((count, *sample), self._dtype)
                array.fill(0)
            transfer = self._transfer(array, dest, self._tag(key, number), sends=True)
            transfer.label = self._label(key)
            transfer.start()
            self._sending.append((transfer, array))

    def _fill_slots(self) -> None:
        """Copy into the slots that are free what waits for them. The others must not hold up this rank's own work."""
        waiting: list[_Filling] = []
        taken: set[int] = set()  # what waits for one slot takes it in order, even if it becomes free meanwhile
        for filling in self._filling:
            slot = self._slots.number(self._op, filling.key)
            if slot in taken or (slot in self._freeing and not self._freeing[slot].test()):
                waiting.append(filling)
                taken.add(slot)
                continue
            for array, place in zip(filling.arrays, filling.places, strict=True):
                place[...] = 0 if array is None else array
                self._pool.release(array)
            self._arena.sync()
            self._signal(filling.dest, self._tag(filling.key), self._label(filling.key))
            freed = self._signalling(filling.dest, _freed_tag(slot), sends=False)
            freed.label = f"release of {self._label(filling.key)}"
            freed.start()
            self._freeing[slot] = freed
        self._filling = waiting

    def _signal(self, dest: int, tag: int, label: str) -> None:
        """Send a message without content."""
        transfer = self._signalling(dest, tag, sends=True)
        transfer.label = label
        transfer.start()
        self._sending.append((transfer, None))

    def receive(self, key: Key, shape: Shape, count: int) -> None:
        """Begin to receive what a stage of another rank sends; arguments as for `send`."""
        source = self._ranks[key[0] - self._direction]
        arrays = self._slots.find(self._op, key, shape, count)
        if arrays is not None:
            self._held[key] = arrays
            transfers = [self._signalling(source, self._tag(key), sends=False)]
        else:
            arrays = [self._pool.take((count, *sample), self._dtype) for sample in member_shapes(shape)]
            transfers = [
                self._transfer(array, source, self._tag(key, number), sends=False)
                for number, array in enumerate(arrays)
            ]
        for transfer in transfers:
            transfer.label = self._label(key)
            transfer.start()
        self._coming[key] = arrays[0] if member_shapes(shape) == (shape,) else tuple(arrays), transfers

    def _transfer(self, array: np.ndarray, peer: int, tag: int, *, sends: bool) -> Transfer:
        key = sends, array.__array_interface__["data"][0], array.nbytes, peer, tag
        if key not in self._prepared:
            self._prepared[key] = self._prepare(array, peer, tag, sends=sends)
        return self._prepared[key]

    def _signalling(self, peer: int, tag: int, *, sends: bool) -> Transfer:
        key = sends, peer, tag
        if key not in self._signals:
            self._signals[key] = self._prepare(self._nothing, peer, tag, sends=sends)
        return self._signals[key]

    def _prepare(self, array: np.ndarray, peer: int, tag: int, *, sends: bool) -> Transfer:
        return (self._comm.send_init if sends else self._comm.recv_init)(array, peer, tag)

    def _label(self, key: Key) -> str:
        """Say what a message carries: an action's result, by the stage that takes it."""
        what = "inputs" if self._direction > 0 else "gradients of outputs"
        return f"{what} of stage {key[0]}, micro-batch {key[1]}"

    def _tag(self, key: Key, number: int = 0) -> int:
        """Return a message's tag; those of one tag are sent and received in one order, as is proved of schedules."""
        several = (number * len(self._ranks) + key[0]) * self._num_microbatches + key[1]
        return (2 * several + (self._direction < 0)) % _FREED

    def move_along(self) -> None:
        """Fill slots that have become free, and give back the arrays of messages that have left. Local."""
        if self._filling:
            self._fill_slots()
        if self._sending:
            self._sending = [entry for entry in self._sending if not self._has_left(*entry)]

    def _has_left(self, transfer: Transfer, array: np.ndarray | None) -> bool:
        left = transfer.test()
        if left:
            self._pool.release(array)
        return left

    def finish(self) -> None:
        """Wait until all messages have left and all slots are free; nothing else may be left."""
        while self._filling or self._sending:
            if self._filling:
                first: Work = self._freeing[self._slots.number(self._op, self._filling[0].key)]
            else:
                first = self._sending[0][0]
            _Waiting(first, self._progress).wait()
            self.move_along()
        for work in self._freeing.values():
            _Waiting(work, self._progress).wait()
        self._freeing.clear()
        left = [*self._here, *self._leaving, *self._coming, *self._held]
        assert not left, f"nothing is left after a batch, but {left}"
