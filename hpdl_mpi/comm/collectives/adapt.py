"""Programs for other ranks and other elements than those they were made for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hpdl_mpi.comm.schedule import Program, Step


def among(program: Program, ranks: Sequence[int]) -> Program:
    """Return the program with `ranks` in place of 0, 1, ...: a collective of some ranks of a larger group."""
    return [tuple(replace(step, peer=ranks[step.peer]) for step in steps) for steps in program]


def shifted(program: Program, offset: int) -> Program:
    """Return a program for the elements from `offset` on in place of those from 0 on.

    It is one of messages, or of arrays that lie in the windows.
    """

    def moved(step: Step) -> Step:
        return replace(step, start=step.start + offset, stop=step.stop + offset, place=step.place + offset)

    return [tuple(map(moved, steps)) for steps in program]
