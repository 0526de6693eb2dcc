"""Numbers that threads take: a thread that is held up takes fewer, instead of keeping the others waiting."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.errors import TypingError
from numba.extending import intrinsic

from hpdl_mpi.kernels.emit import INDEX, element_pointer, index


def tickets(rolls: int = 1) -> np.ndarray:
    """Return what `take_ticket` takes from, the next number of each roll, 0 at first. Each pass makes its own."""
    return np.zeros(rolls, np.int64)


@intrinsic
def take_ticket(typing_context, tickets):
    """Return the next number of the first roll, which no other thread gets."""
    if tickets != types.Array(types.int64, 1, "C"):
        raise TypingError(f"tickets are flat int64; found {tickets}")

    def generate(context, builder, signature, arguments):
        pointer = element_pointer(context, builder, tickets, arguments[0], index(0))
        return builder.atomic_rmw("add", pointer, ir.Constant(INDEX, 1), "monotonic")

    return types.int64(tickets), generate
