"""What is under way between ranks, and the memory they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hpdl_mpi.base.trace import Trace

if TYPE_CHECKING:
    from hpdl_mpi.comm.communicator import Communicator

PAGE = 4096
"""Bytes that what a rank shares is aligned to, and a multiple of."""


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


class Window(ABC):
    """Memory of all ranks of a group, each rank's in one piece.

    Attributes
    ----------
    memory : array
        uint8; that of all ranks of this machine, one part after the other. A part is aligned to `PAGE`.
    parts : sequence of array
        Views of it by rank; None for ranks on other machines.
    """

    memory: np.ndarray
    parts: Sequence[np.ndarray | None]

    def _divide(self, memory: np.ndarray, nodes: Sequence[int], node: int) -> None:
        """Set the attributes, from the memory of a machine and the machine of each rank."""
        size = memory.size // nodes.count(node)
        self.memory = memory
        starts = (size * nodes[:rank].count(node) for rank in range(len(nodes)))
        self.parts = [
            memory[start : start + size] if other == node else None for other, start in zip(nodes, starts, strict=True)
        ]

    @abstractmethod
    def sync(self) -> None:
        """Make what this rank wrote visible to others before it tells them, and see what others wrote. Local."""

    @abstractmethod
    def free(self) -> None:
        """Give the memory back; nobody may use it any more. Collective."""
