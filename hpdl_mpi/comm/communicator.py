"""What every form of the ranks' communication offers: verbs on arrays, and `Work` for those that are under way."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, NoReturn

import numpy as np

from hpdl_mpi.base.errors import InputError, MismatchError
from hpdl_mpi.base.trace import Trace
from hpdl_mpi.comm.calls import Calls, describe_collective, first_difference
from hpdl_mpi.comm.window import Window

RESERVED_TAG = 32_767
"""The largest tag that every MPI library has. The communicator's own messages bear it."""

COLLECTIVE_TAG = RESERVED_TAG - 1
"""What the messages of a `Collective` bear unless it is given another tag; callers use those below."""

Reduction = Literal["sum", "max", "min"]

_UFUNCS: dict[Reduction, np.ufunc] = {"sum": np.add, "max": np.maximum, "min": np.minimum}

PIECE_BYTES = 1 << 20
"""How much `Communicator.allreduce` gathers at once."""


class Work(ABC):
    """Something under way; its arrays belong to it until it is over.

    Attributes
    ----------
    comm : Communicator
        Where it runs.
    label : str
        What it is for, in the user's words.
    """

    comm: Communicator
    label: str = ""

    @abstractmethod
    def test(self) -> bool:
        """Move the work along without blocking and say whether it is over. Local."""

    @property
    @abstractmethod
    def peers(self) -> Sequence[int]:
        """The ranks of `comm` without which it cannot get over."""

    @property
    def progress(self) -> int | None:
        """What grows whenever the work gets further, while that is no message's doing but that of shared memory."""
        return None

    def wait(self) -> None:
        """Block until the work is over.

        Raises
        ------
        TrainingError
            A peer failed or left, or sent a message of another size.
        """
        self.comm.wait_for(self)


class Transfer(Work):
    """Something that is prepared once and done many times, with the same array: a message, a collective.

    Attributes
    ----------
    algorithm : str
        What a collective goes by, for those who ask.
    compressed : bool
        Whether its messages carry fewer bytes than the array has.
    """

    algorithm: str = ""
    compressed: bool = False

    @abstractmethod
    def start(self) -> None:
        """Begin once more; the time before must be over."""

    def __call__(self) -> None:
        """Do it and block until it is over."""
        self.start()
        self.wait()

    def record(self, trace: Trace | None) -> None:
        """Record its rounds, where it has some, from now on, or no longer; nothing may be under way. Local."""
        return

    def free(self) -> None:
        """Give back what it has of memory that ranks share; it is not used again. Collective if it is one."""
        return


class Communicator(ABC):
    """A group of ranks that talk among themselves and with nobody else.

    Arrays are NumPy arrays of any shape and dtype, C-contiguous (else ValueError). A message must have the size in
    bytes of the array that receives it. Messages between two ranks under one tag arrive in the order in which they
    were sent. Verbs that say "collective" are called by every rank of the group, in the same order.

    Attributes
    ----------
    rank, size : int
        This rank's number in the group, and how many ranks it has.
    world_ranks : sequence of int
        The number of each rank in the job. People are told of ranks by it.
    node, num_nodes : int
        The number of the machine that this rank runs on, in the order of the machines' first ranks, and how many
        machines the group covers.
    nodes : sequence of int
        The number of each rank's machine.
    node_rank, node_size : int
        This rank's number among the group's ranks on its machine, and how many those are.
    shares_process : bool
        Whether other ranks are threads of this process, with which this one shares what a process has once: its cores,
        its number of threads.
    takes_threads : bool
        Whether several Python threads of a rank may use it at once, each with work of its own.
    crowded : bool
        Whether ranks of this machine share cores, so that one that waits had better give its core away.
    calls : Calls
        The collectives that this rank has begun here.
    check_calls : bool
        Whether each collective is compared over the ranks before it begins.
    """

    rank: int
    size: int
    world_ranks: Sequence[int]
    node: int
    num_nodes: int
    nodes: Sequence[int]
    node_rank: int
    node_size: int
    shares_process: bool
    takes_threads: bool = False
    crowded: bool
    calls: Calls
    check_calls: bool

    def _place(self, nodes: Sequence[int]) -> None:
        """Set the attributes on machines from any naming of each rank's machine, and those on calls."""
        self.calls, self.check_calls = Calls(), False
        order = list(dict.fromkeys(nodes))
        mine = nodes[self.rank]
        self.node, self.num_nodes = order.index(mine), len(order)
        self.nodes = [order.index(node) for node in nodes]
        self.node_rank, self.node_size = nodes[: self.rank].count(mine), nodes.count(mine)

    @abstractmethod
    def isend(self, array: np.ndarray, dest: int, tag: int = 0) -> Work:
        """Begin to send; the array must not change until the work is over."""

    @abstractmethod
    def irecv(self, array: np.ndarray, source: int, tag: int = 0) -> Work:
        """Begin to receive into the array."""

    @abstractmethod
    def send_init(self, array: np.ndarray, dest: int, tag: int = 0) -> Transfer:
        """Prepare a message that will be sent many times; sends nothing yet."""

    @abstractmethod
    def recv_init(self, array: np.ndarray, source: int, tag: int = 0) -> Transfer:
        """Prepare a message that will be received many times; receives nothing yet."""

    def allreduce_init(self, array: np.ndarray, label: str = "") -> Transfer:
        """Prepare the MPI library's own sum of an array of floats over the ranks; sums nothing yet."""
        raise InputError("has no all-reduce of an MPI library", where=type(self).__name__)

    def library_name(self) -> str:
        """Return the name and version of the MPI library; nothing where there is none. Local."""
        return ""

    def library_allreduce(self, array: np.ndarray) -> None:
        """Sum an array of floats over the ranks as the MPI library does, waiting inside it: to compare with."""
        raise InputError("has no all-reduce of an MPI library", where=type(self).__name__)

    @abstractmethod
    def split(self, color: int, key: int = 0) -> Communicator:
        """Return the group of the ranks that gave this colour, in the order of (key, rank). Collective."""

    @abstractmethod
    def shareable_bytes(self) -> int:
        """Return how many bytes each rank of the job on this machine can still `share`. Local."""

    @abstractmethod
    def share(self, nbytes: int) -> Window:
        """Return memory of `nbytes` or a little more for each rank, shared by those of one machine. Collective.

        See `Arena`. All ranks ask for as much.

        Raises
        ------
        InputError
            The MPI library gives none, perhaps on this machine alone.
        """

    @abstractmethod
    def free(self) -> None:
        """Give back what the group holds of the MPI library; nobody may use it any more. Collective.

        All its work must be over. A further call does nothing.
        """

    @abstractmethod
    def abort(self, code: int) -> NoReturn:
        """End all ranks of the job at once, with this exit code where there are processes to end. Local."""

    @abstractmethod
    def wait_for(self, work: Work) -> None:
        """Block until `work.test()` is true. All waiting in the package comes here."""

    @abstractmethod
    def watched(self, seconds: float) -> AbstractContextManager[None]:
        """Let no rank of the job wait longer than this inside the context: see `Watchdog`. Collective.

        Waits in it raise a TrainingError then that says where every rank is, and which are late.
        """

    def begin(self, what: object) -> None:
        """Count an operation that begins, for those who ask where this rank is; as text it says what it is. Local."""

    def begin_collective(self, what: str) -> None:
        """Do as `begin` for a collective of all ranks; if calls are checked, raise unless it is the same everywhere."""
        self.begin(what)
        self.calls.add(what)
        if self.check_calls:
            self.compare_calls()

    def compare_calls(self) -> None:
        """Raise a MismatchError unless all ranks have begun the same collectives here. Collective."""
        checks, self.check_calls = self.check_calls, False
        try:
            digests = self.allgather_obj(self.calls.digest)
            if len({*digests}) > 1:
                self.explain_mismatch()
        finally:
            self.check_calls = checks

    def explain_mismatch(self) -> NoReturn:
        """Raise a MismatchError that names the first of the latest calls that ranks do not share. Collective."""
        histories = self.allgather_obj(self.calls)
        found = first_difference(dict(zip(self.world_ranks, histories, strict=True)))
        raise MismatchError("ranks do not make the same calls", found=found, shared=self.rank > 0)

    def begin_step(self, step: int) -> None:
        """Note the number of the training step that begins, for the same. Local."""

    def send(self, array: np.ndarray, dest: int, tag: int = 0) -> None:
        """Send, and block until the array may change."""
        self.isend(array, dest, tag).wait()

    def recv(self, array: np.ndarray, source: int, tag: int = 0) -> None:
        """Receive into the array, and block until it is there."""
        self.irecv(array, source, tag).wait()

    def sendrecv(self, sent: np.ndarray, dest: int, received: np.ndarray, source: int, tag: int = 0) -> None:
        """Send one array and receive another at the same time."""
        receiving = self.irecv(received, source, tag)
        self.send(sent, dest, tag)
        receiving.wait()

    def bcast(self, array: np.ndarray, root: int = 0) -> None:
        """Copy the root's array over everyone's, along a binomial tree. Collective."""
        self.begin_collective(describe_collective(f"bcast from rank {self.world_ranks[root]}", array))
        distance = (self.rank - root) % self.size
        reach = 1
        while reach < self.size and not distance & reach:
            reach *= 2
        if distance:
            self.recv(array, (self.rank - reach) % self.size, RESERVED_TAG)
        while reach > 1:
            reach //= 2
            if distance + reach < self.size:
                self.send(array, (self.rank + reach) % self.size, RESERVED_TAG)

    def allgather(self, array: np.ndarray, out: np.ndarray) -> None:
        """Write every rank's array, in the order of ranks, into everyone's `out`, shape (size, *shape). Collective."""
        check_gathered(array, out, self.size)
        self.begin_collective(describe_collective("allgather", array))
        self._allgather(array, out)

    def _allgather(self, array: np.ndarray, out: np.ndarray) -> None:
        """Do what `allgather` does once it is known to be one."""
        others = [peer for peer in range(self.size) if peer != self.rank]
        receiving = [self.irecv(out[peer : peer + 1], peer, RESERVED_TAG) for peer in others]
        sending = [self.isend(array, peer, RESERVED_TAG) for peer in others]
        out[self.rank] = array
        for work in receiving + sending:
            work.wait()

    def barrier(self) -> None:
        """Block until every rank has come here. Collective."""
        nothing = np.empty(0, np.uint8)
        self.allgather(nothing, np.empty((self.size, 0), np.uint8))

    def allreduce(self, array: np.ndarray, op: Reduction = "sum") -> None:
        """Replace everyone's array by its elements' sum, maximum or minimum over the ranks. Collective.

        Each rank gathers all arrays and folds them in the order of ranks, so all get the same bits, on any network,
        and a NaN stays one. Meant for a few numbers: traffic grows with the number of ranks. Gradients take a
        `Collective`.
        """
        check_array(array, written=True)
        self.begin_collective(describe_collective(f"allreduce ({op})", array))
        flat = array.reshape(-1)
        piece = max(1, PIECE_BYTES // (self.size * flat.itemsize))
        gathered = np.empty((self.size, min(piece, flat.size)), flat.dtype)
        for start in range(0, flat.size, piece):
            total = flat[start : start + piece]
            terms = gathered.reshape(-1)[: self.size * total.size].reshape(self.size, total.size)
            self._allgather(total, terms)
            total[:] = terms[0]
            for term in terms[1:]:
                _UFUNCS[op](total, term, out=total)

    def bcast_obj(self, value: Any, root: int = 0) -> Any:
        """Return the root's value on every rank; pickled, so between our own ranks only. Collective."""
        data = _pack(value if self.rank == root else None)
        length = np.array([data.size])
        self.bcast(length, root)
        if self.rank != root:
            data = np.empty(int(length[0]), np.uint8)
        self.bcast(data, root)
        return value if self.rank == root else _unpack(data)

    def allgather_obj(self, value: Any) -> list[Any]:
        """Return every rank's value, in the order of ranks; pickled, so between our own ranks only. Collective."""
        data = _pack(value)
        lengths = self._lengths(data)
        padded = np.zeros(lengths.max(), np.uint8)
        padded[: data.size] = data
        gathered = np.empty((self.size, padded.size), np.uint8)
        self.allgather(padded, gathered)
        return [_unpack(row[:length]) for row, length in zip(gathered, lengths, strict=True)]

    def gather_obj(self, value: Any, root: int = 0) -> list[Any] | None:
        """Return every rank's value at the root, None elsewhere; pickled, between our own ranks only. Collective."""
        self.begin_collective(f"gather to rank {self.world_ranks[root]}")
        data = _pack(value)
        lengths = self._lengths(data)
        if self.rank != root:
            self.send(data, root, RESERVED_TAG)
            return None
        values = []
        for peer, length in enumerate(lengths):
            if peer != root:
                data = np.empty(length, np.uint8)
                self.recv(data, peer, RESERVED_TAG)
            values.append(value if peer == root else _unpack(data))
        return values

    def _lengths(self, data: np.ndarray) -> np.ndarray:
        """Return how many bytes every rank has, shape (size,), int64. Collective."""
        lengths = np.empty((self.size, 1), np.int64)
        self.allgather(np.array([data.size]), lengths)
        return lengths[:, 0]


def check_array(array: np.ndarray, *, written: bool = False) -> None:
    """Raise ValueError unless a message can be taken from, or written to, the array as it lies in memory."""
    if not array.flags.c_contiguous:
        raise ValueError(f"a message needs a C-contiguous array; found shape {array.shape}, strides {array.strides}")
    if array.dtype.hasobject:
        raise ValueError(f"a message needs plain numbers; found dtype {array.dtype}")
    if written and not array.flags.writeable:
        raise ValueError("a message cannot be received into a read-only array")


def check_message(array: np.ndarray, peer: int, size: int, *, written: bool = False) -> None:
    """Raise ValueError unless the array can be exchanged with this rank of a group."""
    check_array(array, written=written)
    if not 0 <= peer < size:
        raise ValueError(f"no rank {peer} in a group of {size}")


def check_gathered(array: np.ndarray, out: np.ndarray, size: int) -> None:
    """Raise ValueError unless `out` holds `size` arrays like `array`."""
    check_array(array)
    check_array(out, written=True)
    if out.shape != (size, *array.shape) or out.dtype != array.dtype:
        expected = f"{(size, *array.shape)} of {array.dtype}"
        raise ValueError(f"gathered arrays have shape {out.shape} of {out.dtype}; expected {expected}")


def as_bytes(array: np.ndarray) -> np.ndarray:
    """Return the bytes of a C-contiguous array, shape (nbytes,), uint8, without a copy."""
    return array.reshape(-1).view(np.uint8)


def _pack(value: Any) -> np.ndarray:
    return np.frombuffer(pickle.dumps(value, pickle.HIGHEST_PROTOCOL), np.uint8)


def _unpack(data: np.ndarray) -> Any:
    # What is unpacked here was packed by another rank of this job, never read from a file.
    return pickle.loads(data.tobytes())  # noqa: S301
