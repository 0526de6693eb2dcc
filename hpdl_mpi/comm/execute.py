"""Runs a rank's program on its array: prepared once, called many times."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike

from hpdl_mpi.base.trace import Trace
from hpdl_mpi.comm.calls import describe_collective
from hpdl_mpi.comm.communicator import COLLECTIVE_TAG, Communicator, Transfer, check_array
from hpdl_mpi.comm.messages import SEGMENT_BYTES, Messages
from hpdl_mpi.comm.schedule import Program, is_shared
from hpdl_mpi.comm.shared_rounds import SharedMemory, SharedRounds
from hpdl_mpi.kernels.elementwise import add
from hpdl_mpi.kernels.shared_steps import run_steps
from hpdl_mpi.kernels.wire import Wire

_MOST_STEPS = 4
"""That a span of a trace spells out."""


def compile_reduction(dtype: DTypeLike, wire: Wire | None = None) -> None:
    """Add arrays of this dtype once, so that no call of a `Collective` waits for the compiler. Local.

    Both forms are needed: other threads than the one that computes take the serial one.
    """
    if wire:
        values, patterns = np.zeros(1, np.float32), np.zeros(1, np.uint16)
        for kernel in (wire.pack, wire.unpack, wire.add):
            kernel(values, patterns)
            kernel.serial(values, patterns)
        wire.round(values)
        wire.round.serial(values)
    array, counters = np.zeros(1, dtype), np.zeros(1, np.int64)
    add(array, array, array)
    add.serial(array, array, array)
    run_steps(np.zeros((0, 5), np.int64), 0, 0, array, array, counters, counters, counters)


class Collective(Transfer):
    """One rank's part in a collective on one array. Prepared once; then each call runs it and allocates no array.

    Parameters
    ----------
    comm : Communicator
        The ranks that take part; program r is run by rank r.
    program : Program
        This rank's program.
    array : ndarray, 1-dimensional, float32 or float64
        What the collective works on, in place; the caller owns it and keeps it alive.
    tag : int, optional
        Keeps apart collectives that are under way at the same time on one communicator. The default keeps one apart
        from all other messages.
    segment_bytes : int, optional
        Where messages are cut; the same on all ranks.
    shared : SharedMemory, optional
        For programs that use such memory; the collective's own from now on.
    label : str
        What it is for.
    joint : bool
        Whether all ranks of `comm` have a program.
    wire : Wire, optional
        How messages carry float32 in less; memory that ranks share is not concerned.
    algorithm : str
        See `Transfer`.
    num_elements : int, optional
        How many elements it is about, for those who ask; by default all of the array.

    Notes
    -----
    ``collective()`` blocks. Else `start` begins, `test` moves it along between other work, and `wait` finishes; the
    array must be left alone in between. All three are collective.
    """

    def __init__(
        self,
        comm: Communicator,
        program: Program,
        array: np.ndarray,
        *,
        tag: int = COLLECTIVE_TAG,
        segment_bytes: int = SEGMENT_BYTES,
        shared: SharedMemory | None = None,
        label: str = "",
        joint: bool = True,
        wire: Wire | None = None,
        algorithm: str = "",
        num_elements: int | None = None,
    ) -> None:
        check_array(array, written=True)
        if array.ndim != 1 or array.dtype not in (np.float32, np.float64):
            raise ValueError(f"a collective needs a flat float array; found shape {array.shape} of {array.dtype}")
        if wire and array.dtype != np.float32:
            raise ValueError(f"only float32 can travel in less; found {array.dtype}")
        self.comm, self.label, self.algorithm, self._joint = comm, label, algorithm, joint
        way = f"{algorithm} in {wire.name}" if wire else algorithm
        self._said = describe_collective(label or "collective", array[:num_elements], way)
        self._shared, self._program = shared, program
        self._names: dict[tuple[int, int], str] = {}
        length = max(1, segment_bytes // array.itemsize)
        self._parts: list[Messages | SharedRounds] = []
        numbered = itertools.groupby(enumerate(program), lambda entry: is_shared(entry[1]))
        for through_memory, rounds in numbered:
            if through_memory:
                assert shared is not None, "a program that uses shared memory gets some"
                self._parts.append(SharedRounds(shared, list(rounds), array))
            else:
                self._parts.append(Messages(comm, list(rounds), array, tag, length, wire))
        self._position = len(self._parts)
        self._run = 0
        steps = [step for steps in program for step in steps if step.size]
        bounds = [edge for step in steps for edge in (step.start, step.stop)]
        self._summed = array[min(bounds, default=0) : max(bounds, default=0)]
        self._wire = wire if any(isinstance(part, Messages) for part in self._parts) else None
        self.compressed = self._wire is not None

    def start(self) -> None:
        if self._joint:
            self.comm.begin_collective(self._said)
        else:
            self.comm.begin(self._said)
        self._position = -1
        self._run += 1
        self._next_part()

    def _next_part(self) -> None:
        self._position += 1
        if self._position < len(self._parts):
            self._parts[self._position].start(self._run)
        elif self._wire:
            self._wire.round(self._summed)  # where the last sum was not sent on it is still exact

    def test(self) -> bool:
        while self._position < len(self._parts):
            if not self._parts[self._position].test():
                return False
            self._next_part()
        return True

    @property
    def progress(self) -> int | None:
        if not isinstance(self._pending(), SharedRounds):
            return None
        return sum(part.steps_done for part in self._parts if isinstance(part, SharedRounds))

    @property
    def peers(self) -> Sequence[int]:
        pending = self._pending()
        return pending.peers if pending else ()

    def _pending(self) -> Messages | SharedRounds | None:
        return self._parts[self._position] if self._position < len(self._parts) else None

    def record(self, trace: Trace | None) -> None:
        """See `Transfer.record`.

        Each round of messages has a span. Those in shared memory share one for each call that does a step of them:
        compiled code goes on as far as other ranks allow. Whoever moves the collective along records, in any thread.
        """

        def note(first: int, last: int, began: float) -> None:
            if trace is not None:
                trace.add("round", self._describe_rounds(first, last), began)

        for part in self._parts:
            part.record(None if trace is None else note)

    def _describe_rounds(self, first: int, last: int) -> str:
        """Return what rounds are called in a trace, counted from 1, and what they do if that is short."""
        known = self._names.get((first, last))
        if known is not None:
            return known
        numbers = f"round {first + 1}" if first == last else f"rounds {first + 1} to {last + 1}"
        ranks = self.comm.world_ranks
        steps = [step.among(ranks) for steps in self._program[first : last + 1] for step in steps]
        said = "; ".join(map(str, steps)) if len(steps) <= _MOST_STEPS else f"{len(steps)} steps"
        name = f"{self.label or 'collective'}: {numbers} of {len(self._program)}: {said}"
        self._names[first, last] = name
        return name

    def free(self) -> None:
        if self._shared:
            self._shared.free()

    def __str__(self) -> str:
        return f"rank {self.comm.world_ranks[self.comm.rank]}, {self._pending() or 'at the end'}"
