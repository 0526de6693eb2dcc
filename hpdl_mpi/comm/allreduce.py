"""All-reduce by name: prepares what sums an array over the ranks of a group."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm.choice import choose_allreduce
from hpdl_mpi.comm.collectives import ALLREDUCES, LIBRARY, Algorithm
from hpdl_mpi.comm.communicator import COLLECTIVE_TAG, Communicator, Transfer
from hpdl_mpi.comm.execute import Collective
from hpdl_mpi.comm.messages import SEGMENT_BYTES
from hpdl_mpi.comm.schedule import Program, window_size
from hpdl_mpi.comm.shared_rounds import SharedMemory
from hpdl_mpi.comm.window import Window
from hpdl_mpi.kernels.wire import WIRES, Wire

AUTO = "auto"

_SPARE = "ring"
"""What needs no memory that ranks share."""

_IN_WINDOW = next(name for name, kind in ALLREDUCES.items() if kind.in_window)
"""What sums arrays where they lie, if all of them are on one machine."""

_NETWORK_SEGMENT_BYTES = 1 << 19
"""Of a message between machines: of a few on their way, one is added while the next ones keep the link busy."""


def make_allreduce(
    comm: Communicator,
    array: np.ndarray,
    algorithm: str = AUTO,
    *,
    tag: int = COLLECTIVE_TAG,
    segment_bytes: int | None = None,
    window: Window | None = None,
    label: str = "",
    compression: str | None = None,
    joint: bool = True,
) -> Transfer:
    """Prepare a sum over all ranks into everyone's array, to be started again and again. Collective.

    Parameters
    ----------
    comm : Communicator
    array : ndarray, 1-dimensional, float32 or float64
        Of one length on all ranks.
    algorithm : str
        A name of `ALLREDUCES`, `LIBRARY`, or `AUTO`: in a window on one machine what is made for that, and else what
        suits the array and the place of the ranks.
    tag : int
        See `Collective`.
    segment_bytes : int, optional
        See `Collective`; by default what suits one machine, or a network.
    window : Window, optional
        Where the arrays lie, each at the start of its rank's part, for an algorithm made for that.
    label : str
        What is summed, in the user's words.
    compression : str, optional
        A name of `WIRES`: how messages carry float32. What goes through shared memory, or is the library's, is not
        compressed; float64 neither.
    joint : bool
        Whether all ranks start it in one order among the sums of `comm`, as those of the library must be.

    Raises
    ------
    InputError
        There is no such algorithm, these ranks cannot use it, or the machine has too little memory to share.
    """
    chosen = algorithm == AUTO
    if chosen:
        in_window = window is not None and comm.num_nodes == 1
        algorithm = _IN_WINDOW if in_window else choose_allreduce(comm, array.nbytes, joint=joint)
    wire = find_wire(compression, array.dtype)
    if algorithm == LIBRARY:
        if not joint:
            what = "the MPI library's sums must start in one order on all ranks, which these do not"
            raise InputError(what, where="all-reduce", found=LIBRARY, remedy="take another algorithm", shared=True)
        work = comm.allreduce_init(array, label)
        work.algorithm = algorithm
        return work
    if segment_bytes is None:
        segment_bytes = segment_bytes_between(comm)
    algorithm, program, shared = _prepare(comm, array, algorithm, window, spare=chosen)
    return Collective(
        comm,
        program,
        array,
        tag=tag,
        segment_bytes=segment_bytes,
        shared=shared,
        label=label,
        joint=joint,
        wire=wire,
        algorithm=algorithm,
    )


def _prepare(
    comm: Communicator, array: np.ndarray, algorithm: str, window: Window | None, *, spare: bool
) -> tuple[str, Program, SharedMemory | None]:
    """Return an algorithm, this rank's program and what memory that shares; with `spare` the ring where there is none.

    Collective.
    """
    kind = find_algorithm(algorithm, comm, in_window=window is not None)
    program = kind.programs(comm.nodes, array.size, comm.rank)
    if not kind.shares:
        return algorithm, program, None
    try:
        # Others need windows of their own: in this one they would write over the arrays.
        arrays = window if kind.in_window else None
        return algorithm, program, SharedMemory(comm, window_size([program]), array.dtype, arrays)
    except InputError:  # on all ranks
        if not spare:
            raise
    return _prepare(comm, array, _SPARE, window, spare=False)


def segment_bytes_between(comm: Communicator) -> int:
    """Return the segments' length that suits the place of the ranks."""
    return SEGMENT_BYTES if comm.num_nodes == 1 else _NETWORK_SEGMENT_BYTES


def find_wire(compression: str | None, dtype: DTypeLike) -> Wire | None:
    """Return how messages carry numbers by this name, float32 alone; raise an InputError if there is no such way."""
    if compression is None or compression in WIRES:
        return WIRES[compression] if compression and dtype == np.float32 else None
    raise InputError(
        "no such compression", where="all-reduce", found=compression, expected=" or ".join(WIRES), shared=True
    )


def find_algorithm(name: str, comm: Communicator, *, in_window: bool) -> Algorithm:
    """Return the all-reduce of this name; raise an InputError unless these ranks can use it."""

    def refuse(what: str, found: object, expected: object) -> InputError:
        return InputError(what, where=f"all-reduce {name!r}", found=found, expected=expected, shared=True)

    if name not in ALLREDUCES:
        raise refuse("no such algorithm", None, " or ".join((AUTO, LIBRARY, *ALLREDUCES)))
    kind = ALLREDUCES[name]
    if kind.one_machine and comm.num_nodes > 1:
        raise refuse("needs all ranks on one machine", f"{comm.num_nodes} machines", 1)
    if kind.in_window and not in_window:
        what = "needs arrays that lie in memory which ranks share"
        remedy = "give the window they lie in, or take another algorithm"
        raise InputError(what, where=f"all-reduce {name!r}", remedy=remedy, shared=True)
    return kind
