"""Runs the rounds of a program that go through memory which ranks of a machine share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import DTypeLike

from hpdl_mpi.base.memory import ALIGNMENT
from hpdl_mpi.base.trace import now
from hpdl_mpi.comm.arena import Arena
from hpdl_mpi.comm.communicator import Communicator
from hpdl_mpi.comm.messages import Note
from hpdl_mpi.comm.schedule import Op, Program, Round, Step, window_size
from hpdl_mpi.comm.window import Window
from hpdl_mpi.kernels import shared_steps

_CODES = {
    Op.COPY: shared_steps.COPY,
    Op.WRITE: shared_steps.COPY,
    Op.READ: shared_steps.READ,
    Op.READ_REDUCE: shared_steps.READ_REDUCE,
    Op.SIGNAL: shared_steps.SIGNAL,
    Op.WAIT: shared_steps.WAIT,
}

_STREAM_BYTES = 1 << 13
"""From here on copies to windows pass the cache where ranks' cores share none: a core that reads what is still in
another one's cache, and not yet in memory, takes five times as long there. Where they do it is the quicker way."""

_PROBE_BYTES, _PROBES = 1 << 16, 4
"""What is read, and how often, to find out which of the two machines this is. Shorter windows do not tell."""

_SLOWER = 2.0
"""So many times as long takes what comes out of another core's cache, at least, where cores share none."""

_STREAM_ARRAY_BYTES = 1 << 24
"""Of an array from which on what is copied from windows passes the cache: it would not be found there later, and memory
need not be read before it is written."""

_SPINS = 20_000
"""Looks at a signal, of about a nanosecond each, before a rank with a core of its own asks after its peers."""

_FEW_SPINS = 50
"""The same where others need the core."""


class SharedMemory:
    """What a collective needs of the memory that ranks of a machine share: windows and signals. Collective.

    Parameters
    ----------
    comm : Communicator
    size : int
        Elements of a window; the greatest of those that the ranks give counts.
    dtype : dtype
    arrays : Window, optional
        Where the arrays lie, each at the start of its rank's part, for programs that use no other windows.

    Attributes
    ----------
    memory : ndarray, 1-dimensional, `dtype`
        All windows of this machine.
    signals : ndarray, 1-dimensional, int64
        All counters of this machine.
    num_windows : int
        How many windows of a rank are used in turn.
    raised, awaited : ndarray, shape (size,), int64
        How often this rank has signalled each other one, and been signalled.
    streams : bool
        Whether copies to windows of `_STREAM_BYTES` and more pass the cache; the same on all ranks. Where windows are
        long enough to tell it is measured.

    Raises
    ------
    InputError
        The machine has too little memory to share.
    """

    def __init__(self, comm: Communicator, size: int, dtype: DTypeLike, arrays: Window | None = None) -> None:
        self.comm, dtype = comm, np.dtype(dtype)
        size = max(comm.allgather_obj(size))
        self.num_windows = 1 if arrays else 2
        self._window_bytes = 0 if arrays else -(-size * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        self._signals_start = self.num_windows * self._window_bytes
        self._arena = Arena(comm)
        self._arena.reserve(self._signals_start + comm.size * shared_steps.SIGNAL_BYTES)
        window = self._arena.window
        if window is None:
            raise self._arena.shortage("or leave it to messages: another algorithm, parallel.shared_memory = 'none'")
        self.signals = window.memory.view(np.int64)
        self.memory = (arrays or window).memory.view(dtype)
        self._part_bytes = window.memory.size // comm.node_size
        self._stride = self.memory.size // comm.node_size
        self._rows = [comm.nodes[:peer].count(node) for peer, node in enumerate(comm.nodes)]
        self._dtype = dtype
        self.raised, self.awaited = np.zeros((2, comm.size), np.int64)
        self.streams = self._window_bytes < _PROBE_BYTES or self.reads_faster_from_memory()

    def place(self, peer: int, element: int, window: int) -> int:
        """Return where in `memory` an element of a window of a rank is."""
        return self._rows[peer] * self._stride + window * self._window_bytes // self._dtype.itemsize + element

    def signal(self, source: int, dest: int) -> int:
        """Return where in `signals` the counter is that `source` raises and `dest` reads."""
        start = self._rows[dest] * self._part_bytes + self._signals_start
        return (start + self._rows[source] * shared_steps.SIGNAL_BYTES) // self.signals.itemsize

    def reads_faster_from_memory(self) -> bool:
        """Read the next rank's window when it was just written, through the cache and past it. Collective.

        Returns
        -------
        bool
            Whether any rank reads much slower what has gone through the cache.
        """
        comm = self.comm
        here = [peer for peer, node in enumerate(comm.nodes) if node == comm.nodes[comm.rank]]
        following = here[(here.index(comm.rank) + 1) % len(here)]
        array = np.zeros(_PROBE_BYTES // self._dtype.itemsize, self._dtype)

        def run(code: int, peer: int) -> float:
            table = np.array([[code, 0, array.size, self.place(peer, 0, 0), peer]], np.int64)
            began = now()
            shared_steps.run_steps(table, 0, 0, array, self.memory, self.signals, self.raised, self.awaited)
            return now() - began

        def read_after(code: int) -> float:
            run(code, comm.rank)
            comm.barrier()
            seconds = run(shared_steps.READ, following)
            comm.barrier()
            return seconds

        probes = [(read_after(shared_steps.COPY), read_after(shared_steps.STREAM)) for _ in range(_PROBES)]
        cached, streamed = map(min, zip(*probes, strict=True))
        return any(comm.allgather_obj(cached > _SLOWER * streamed))

    def free(self) -> None:
        """Give the memory back. Collective."""
        self.signals, self.memory = np.zeros(0, np.int64), np.zeros(0, self._dtype)
        self._arena.free()


def share_memory(comm: Communicator, program: Program, dtype: DTypeLike, arrays: Window | None = None) -> SharedMemory:
    """Return the memory that this rank's program and those of the others need. Collective; see `SharedMemory`."""
    return SharedMemory(comm, window_size([program]), dtype, arrays)


class SharedRounds:
    """Some rounds that follow one another in a program, all through shared memory.

    Parameters
    ----------
    shared : SharedMemory
    rounds : sequence of (int, Round)
        With their numbers in the program.
    array : ndarray
        What the program works on.
    """

    def __init__(self, shared: SharedMemory, rounds: Sequence[tuple[int, Round]], array: np.ndarray) -> None:
        self._shared, self._array = shared, array
        steps = [(number, step) for number, steps in rounds for step in steps]
        both = {index for index in range(1, len(steps)) if _is_written_back(steps[index - 1][1], steps[index][1])}
        self._steps = [numbered for index, numbered in enumerate(steps) if index not in both]
        self._tables = [
            np.array(
                [
                    self._row(step, window, written_back=index + 1 in both)
                    for index, (_, step) in enumerate(steps)
                    if index not in both
                ],
                np.int64,
            ).reshape(-1, 5)
            for window in range(shared.num_windows)
        ]
        self._spins = _FEW_SPINS if shared.comm.crowded else _SPINS
        self._table = self._tables[0]
        self._position = len(self._steps)
        self._note: Note | None = None
        self.steps_done = 0
        """In all runs."""

    def _row(self, step: Step, window: int, *, written_back: bool) -> tuple[int, int, int, int, int]:
        """Return a step as `run_steps` takes it, with the one after it if that writes back what this one sums."""
        own = self._shared.comm.rank
        if step.op is Op.SIGNAL:
            place = self._shared.signal(own, step.peer)
        elif step.op is Op.WAIT:
            place = self._shared.signal(step.peer, own)
        else:
            place = self._shared.place(step.peer, step.place, window)
        code = shared_steps.REDUCE_BOTH if written_back else _CODES[step.op]
        if step.size * self._array.itemsize >= _STREAM_BYTES:
            if step.op is Op.COPY and self._shared.streams:
                code = shared_steps.STREAM
            elif step.op is Op.READ and self._array.nbytes >= _STREAM_ARRAY_BYTES:
                code = shared_steps.STREAM_READ
        return code, step.start, step.stop, place, step.peer

    def start(self, run: int) -> None:
        """Begin run 0, 1, ...; the one before must be over."""
        self._table = self._tables[run % len(self._tables)]
        self._position = 0

    def record(self, note: Note | None) -> None:
        """Let `note` know of the rounds of each call that does a step of some; None to record no longer."""
        self._note = note

    def test(self) -> bool:
        """Go on as far as the other ranks allow, and say whether all is done."""
        shared, before = self._shared, self._position
        began = 0.0 if self._note is None else now()
        self._position = shared_steps.run_steps(
            self._table,
            before,
            self._spins,
            self._array,
            shared.memory,
            shared.signals,
            shared.raised,
            shared.awaited,
        )
        self.steps_done += self._position - before
        if self._note is not None and self._position > before:
            self._note(self._steps[before][0], self._steps[self._position - 1][0], began)
        return self._position == len(self._steps)

    @property
    def peers(self) -> Sequence[int]:
        """Whom it waits for."""
        return [step.peer for _, step in self._steps[self._position : self._position + 1]]

    def __str__(self) -> str:
        if self._position == len(self._steps):
            return "over"
        number, step = self._steps[self._position]
        return f"round {number}: {step.among(self._shared.comm.world_ranks)}"


def _is_written_back(step: Step, following: Step) -> bool:
    """Return whether a sum goes back to where its second term came from, which one pass over both can do."""
    return step.op is Op.READ_REDUCE and following == replace(step, op=Op.WRITE)
