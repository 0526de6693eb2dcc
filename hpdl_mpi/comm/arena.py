"""Memory that ranks of one machine share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm.communicator import Communicator
from hpdl_mpi.comm.window import Window

_FOLDER = "/dev/shm"
"""Where the system keeps it."""


class Arena:
    """A window that grows when more is asked for. Methods that say so are collective.

    Where the machine lacks the memory to share, or the MPI library has no more windows, there is none: `parts` are
    None, and messages must do.

    Parameters
    ----------
    comm : Communicator

    Attributes
    ----------
    window : Window or None
        Another one after each growth.
    """

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self.window: Window | None = None
        self._size = 0
        self._refusal: InputError | None = None

    @property
    def parts(self) -> Sequence[np.ndarray | None]:
        """The memory of all ranks, see `Window`."""
        return self.window.parts if self.window else [None] * self._comm.size

    def reserve(self, nbytes: int) -> None:
        """Have so many bytes for each rank at least; what was in them is lost. Collective, with one number on all."""
        if nbytes <= self._size:
            return
        self.free()
        self._size = nbytes
        if not all(self._comm.allgather_obj(nbytes <= self._comm.shareable_bytes())):
            expected = f"{nbytes} bytes for each rank of the machine"
            self._refusal = InputError("too little memory that ranks can share", where=_FOLDER, expected=expected)
            return
        window, refusal = None, None
        try:
            window = self._comm.share(nbytes)
        except InputError as error:
            refusal = error
        refusals = list(filter(None, self._comm.allgather_obj(refusal)))
        if refusals:
            self._refusal = refusals[0]
            if window:
                window.free()  # as all of this machine do
        elif window:
            self.window = window
            # Taken now, so that others see that it is taken: the system gives memory when it is first written.
            mine = self.window.parts[self._comm.rank]
            assert mine is not None, "a rank shares memory with itself"
            mine.fill(0)
            self._comm.barrier()

    def shortage(self, remedy: str) -> InputError:
        """Return the error of those who cannot do without a window, and why there is none."""
        what = str(self._refusal).rstrip(".")
        more = "give a container more of it (docker run --shm-size), " if what.startswith(_FOLDER) else ""
        return InputError(what, remedy=f"{more}have fewer buckets (parallel.bucket_cap_mb), {remedy}", shared=True)

    def sync(self) -> None:
        """See `Window.sync`."""
        if self.window:
            self.window.sync()

    def free(self) -> None:
        """Give the memory back; a further call does nothing. Collective."""
        if self.window:
            # The library's own wait would not notice a rank that has left.
            self._comm.barrier()
            self.window.free()
        self.window, self._size = None, 0
