"""Where messages between ranks of one machine lie: in slots of memory that they share.

A slot belongs to the rank that receives. The sender copies into it, and the receiver computes on it as it lies; a
message without content says that it is there, another one that the slot is free again. A slot is used anew only by a
message that the receiver's program awaits after it has let go of the one before. So a sender that waits for a free slot
waits for less than its message's receive, and what is proved of a schedule whose sends block until received holds.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import DTypeLike

from hpdl_mpi.base.memory import ALIGNMENT
from hpdl_mpi.comm import Arena, Window
from hpdl_mpi.nn import Shape, member_shapes
from hpdl_mpi.parallel.pipeline.action import Op, Program, Schedule

Key = tuple[int, int]
"""The stage that something is for, and its micro-batch."""


def assign_slots(program: Program) -> dict[tuple[Op, Key], int]:
    """Return the slot of each message that a rank receives; each stage and direction counts its own from 0.

    A slot is taken when the message is awaited and free when the micro-batch is done with the stage. It rests until one
    message more has been awaited: the sender, who computes meanwhile, shall find it free when it comes to send.
    """
    backwards = any(action.op in (Op.W, Op.B) for action in program)
    ends = (Op.W, Op.B) if backwards else (Op.F,)
    free: dict[tuple[Op, int], list[int]] = {}
    resting: dict[tuple[Op, int], list[int]] = {}
    counts: dict[tuple[Op, int], int] = {}
    slots: dict[tuple[Op, Key], int] = {}
    for action in program:
        key = action.stage, action.microbatch
        if action.op in (Op.RECV_F, Op.RECV_B):
            kind = action.op, action.stage
            idle = free.setdefault(kind, [])
            if not idle:
                idle.append(counts.setdefault(kind, 0))
                counts[kind] += 1
            slots[action.op, key] = heapq.heappop(idle)
            for slot in resting.pop(kind, []):
                heapq.heappush(idle, slot)
        elif action.op in ends:
            for op in (Op.RECV_F, Op.RECV_B):
                if (op, key) in slots:
                    resting.setdefault((op, action.stage), []).append(slots[op, key])
    return slots


class SharedSlots:
    """The slots of all ranks of a pipeline, in memory that those of one machine share. Alike on all ranks.

    Parameters
    ----------
    schedule : Schedule
        Complete.
    arena : Arena
        Of the pipeline's ranks.
    dtype : dtype
    """

    def __init__(self, schedule: Schedule, arena: Arena, dtype: DTypeLike) -> None:
        self._arena, self._dtype = arena, np.dtype(dtype)
        self._owners = schedule.stage_ranks
        self._slots: dict[tuple[Op, Key], int] = {}
        for program in schedule.programs:
            self._slots |= assign_slots(program)
        self._counts: dict[tuple[Op, int], int] = {}
        for (op, (stage, _)), slot in self._slots.items():
            self._counts[op, stage] = max(slot + 1, self._counts.get((op, stage), 0))
        # All slots in one count.
        self._firsts: dict[tuple[Op, int], int] = {}
        for kind in sorted(self._counts):
            self._firsts[kind] = sum(self._counts[other] for other in self._firsts)
        self._rooms = dict.fromkeys(self._counts, 0)
        self._starts: dict[tuple[Op, int], int] = {}
        self._found: dict[tuple[Op, Key, Shape, int], list[np.ndarray] | None] = {}
        self._window: Window | None = None  # of which those are

    def prepare(self, microbatch_size: int, shapes: Mapping[Op, Sequence[Shape]]) -> None:
        """Make room for messages of so many samples. Collective.

        Parameters
        ----------
        microbatch_size : int
        shapes : mapping of Op to sequence of tuple of int
            Of what each stage receives, by RECV_F and RECV_B.
        """
        needed = {(op, stage): self._message_bytes(shapes[op][stage], microbatch_size) for op, stage in self._counts}
        if any(needed[kind] > room for kind, room in self._rooms.items()):
            self._rooms = {kind: max(room, needed[kind]) for kind, room in self._rooms.items()}
            ends = dict.fromkeys(self._owners, 0)
            for (op, stage), count in sorted(self._counts.items()):
                owner = self._owners[stage]
                self._starts[op, stage] = ends[owner]
                ends[owner] += count * self._rooms[op, stage]
            self._arena.reserve(max(ends.values()))
            self._found.clear()
        if self._arena.window is not self._window:  # another executor may have grown it
            self._window = self._arena.window
            self._found.clear()

    def number(self, op: Op, key: Key) -> int:
        """Return the number of a message's slot among all slots of the pipeline."""
        return self._firsts[op, key[0]] + self._slots[op, key]

    def find(self, op: Op, key: Key, shape: Shape, count: int) -> list[np.ndarray] | None:
        """Return the arrays of a message in its slot, each (count, ...); None if sender and receiver share no memory.

        Made once for each message, since a step is full of them.

        Parameters
        ----------
        op : Op
            RECV_F or RECV_B.
        key : (int, int)
            The receiving stage, and the micro-batch.
        shape : tuple of int, or tuple of such
            Of one sample.
        count : int
            Samples.
        """
        message = op, key, shape, count
        if message not in self._found:
            self._found[message] = self._find(*message)
        return self._found[message]

    def _find(self, op: Op, key: Key, shape: Shape, count: int) -> list[np.ndarray] | None:
        stage = key[0]
        memory = self._arena.parts[self._owners[stage]]
        sender = self._owners[stage + (-1 if op is Op.RECV_F else 1)]
        if memory is None or self._arena.parts[sender] is None:
            return None
        start = self._starts[op, stage] + self._slots[op, key] * self._rooms[op, stage]
        arrays = []
        for sample in member_shapes(shape):
            stop = start + count * math.prod(sample) * self._dtype.itemsize
            arrays.append(memory[start:stop].view(self._dtype).reshape(count, *sample))
            start = _aligned(stop)
        return arrays

    def _message_bytes(self, shape: Shape, count: int) -> int:
        return sum(_aligned(count * math.prod(sample) * self._dtype.itemsize) for sample in member_shapes(shape))


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
