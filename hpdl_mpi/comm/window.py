"""Memory that ranks of one machine share, as a communicator gives it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

PAGE = 4096
"""Bytes that what a rank shares is aligned to, and a multiple of."""


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
