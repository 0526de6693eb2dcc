"""A pipeline schedule as data: for each rank the list of its actions.

A model is cut into stages, a batch into micro-batches. Stage 0 reads the samples, the last stage knows the loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum


class Op(StrEnum):
    """What an action does; dgrad and wgrad are the two halves of backward."""

    F = "F"
    """Forward."""
    I = "I"
    """dgrad: the gradient of the stage's input."""
    W = "W"
    """wgrad: the gradient of the stage's weights."""
    B = "B"
    """Both."""
    SEND_F = "SEND_F"
    """Send the stage's output to the next stage's rank."""
    RECV_F = "RECV_F"
    """Receive the stage's input from the previous stage's rank."""
    SEND_B = "SEND_B"
    """Send the gradient of the stage's input to the previous stage's rank."""
    RECV_B = "RECV_B"
    """Receive the gradient of the stage's output from the next stage's rank."""
    REDUCE = "REDUCE"
    """Sum the stage's weight gradient over the ranks that hold the same stage."""


COMPUTE = frozenset({Op.F, Op.I, Op.W, Op.B})


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that a rank does.

    Attributes
    ----------
    op : Op
    stage : int
    microbatch : int
        Its number in the batch; -1 for REDUCE, which concerns all.
    """

    op: Op
    stage: int
    microbatch: int = -1

    def __str__(self) -> str:
        return f"{self.stage}{self.op}{self.microbatch if self.op is not Op.REDUCE else ''}"


Program = tuple[Action, ...]
"""What one rank does, in order."""


@dataclass(frozen=True)
class Schedule:
    """The programs of all ranks for one batch.

    Attributes
    ----------
    stage_ranks : tuple of int
        The rank of each stage. Stages of one rank are called its chunks.
    num_microbatches : int
    programs : tuple of Program
        One for each rank.
    """

    stage_ranks: tuple[int, ...]
    num_microbatches: int
    programs: tuple[Program, ...]

    @property
    def num_ranks(self) -> int:
        """How many ranks have a program."""
        return len(self.programs)

    @property
    def num_stages(self) -> int:
        """How many stages the model is cut into."""
        return len(self.stage_ranks)

    def actions(self) -> Iterator[Action]:
        """Yield the actions of all ranks."""
        for program in self.programs:
            yield from program

    def with_programs(self, programs: list[list[Action]]) -> Schedule:
        """Return the schedule with other programs."""
        return replace(self, programs=tuple(tuple(program) for program in programs))


def loop_placement(num_ranks: int, num_chunks: int) -> tuple[int, ...]:
    """Return the ranks of stages that go around: 0, 1, ..., p - 1, 0, 1, ..."""
    return tuple(range(num_ranks)) * num_chunks


def v_placement(num_ranks: int) -> tuple[int, ...]:
    """Return the ranks of two stages each, there and back: 0, 1, ..., p - 1, p - 1, ..., 1, 0."""
    return (*range(num_ranks), *reversed(range(num_ranks)))
