"""The schedules that a job can name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from hpdl_mpi.base.errors import InputError, require
from hpdl_mpi.parallel.pipeline import generators
from hpdl_mpi.parallel.pipeline.action import Schedule
from hpdl_mpi.parallel.pipeline.table import read_schedule

MAX_SIZE = 100_000
"""Ranks times micro-batches times chunks: what is larger takes long to prove."""


@dataclass(frozen=True)
class Family:
    """A kind of schedule.

    Attributes
    ----------
    generate : callable
        (num_ranks, num_microbatches, num_chunks) -> Schedule.
    bubble : callable
        The published bubble fraction for F = I = W, of the same arguments, given enough micro-batches.
    min_chunks, max_chunks : int
        How many stages a rank can have; the least is the default.
    """

    generate: Callable[[int, int, int], Schedule]
    bubble: Callable[[int, int, int], Fraction]
    min_chunks: int = 1
    max_chunks: int = 1


FAMILIES = {
    "gpipe": Family(lambda p, m, v: generators.gpipe(p, m), lambda p, m, v: Fraction(p - 1, m + p - 1)),
    "1f1b": Family(
        lambda p, m, v: generators.one_forward_one_backward(p, m), lambda p, m, v: Fraction(p - 1, m + p - 1)
    ),
    "interleaved": Family(
        generators.interleaved, lambda p, m, v: Fraction(p - 1, v * m + p - 1), min_chunks=2, max_chunks=1024
    ),
    "zb-h1": Family(lambda p, m, v: generators.zb_h1(p, m), lambda p, m, v: Fraction(p - 1, 3 * m + p - 1)),
    "zb-h2": Family(lambda p, m, v: generators.zb_h2(p, m), lambda p, m, v: Fraction(0)),
    "zb-v": Family(lambda p, m, v: generators.zb_v(p, m), lambda p, m, v: Fraction(0), min_chunks=2, max_chunks=2),
}


def make_schedule(name: str, num_ranks: int, num_microbatches: int, num_chunks: int | None = None) -> Schedule:
    """Return the schedule of a name, or of a CSV file; computations only.

    Parameters
    ----------
    name : str
        One of `FAMILIES`, or the path of a file that ends in .csv.
    num_ranks, num_microbatches : int
        A file must be made for as many.
    num_chunks : int, optional
        Stages on each rank.

    Raises
    ------
    InputError
        There is no such schedule, or it cannot be for these numbers.
    """
    require("parallel.pp", num_ranks, num_ranks >= 1, "at least 1")
    require("parallel.num_microbatches", num_microbatches, num_microbatches >= 1, "at least 1")
    size = num_ranks * num_microbatches * (num_chunks or 1)
    require("ranks x micro-batches x chunks", size, size <= MAX_SIZE, f"at most {MAX_SIZE}")
    if name.lower().endswith(".csv"):
        return _read_fitting(Path(name), num_ranks, num_microbatches)
    if name not in FAMILIES:
        expected = f"{', '.join(FAMILIES)}, or a file that ends in .csv"
        raise InputError("no such schedule", where="parallel.schedule", found=repr(name), expected=expected)
    family = FAMILIES[name]
    chunks = family.min_chunks if num_chunks is None else num_chunks
    if not family.min_chunks <= chunks <= family.max_chunks:
        fixed = family.min_chunks == family.max_chunks
        expected = str(family.min_chunks) if fixed else f"{family.min_chunks} to {family.max_chunks}"
        raise InputError(f"stages on each rank of {name}", where="parallel.num_chunks", found=chunks, expected=expected)
    return family.generate(num_ranks, num_microbatches, chunks)


def _read_fitting(path: Path, num_ranks: int, num_microbatches: int) -> Schedule:
    schedule = read_schedule(path)
    found = schedule.num_ranks, schedule.num_microbatches
    if found != (num_ranks, num_microbatches):
        raise InputError(
            "the schedule is made for other numbers",
            where=path,
            found=f"{found[0]} ranks and {found[1]} micro-batches",
            expected=f"{num_ranks} and {num_microbatches}",
        )
    return schedule
