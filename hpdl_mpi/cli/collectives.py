"""``hpdl schedule show allreduce``: the program of every rank of an all-reduce, proved and timed on paper."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpdl_mpi.comm.predict import Costs
    from hpdl_mpi.comm.schedule import Program

_SHOWN_ROUNDS = 12
_SHOWN_STEPS = 8
_SHOWN_RANKS = 9
MAX_RANKS = 512
MAX_BYTES = 1 << 28
_ITEMSIZE = 4


def show_allreduce(algorithm: str, num_ranks: int, num_machines: int, nbytes: int, costs: Costs) -> Iterator[str]:
    """Yield lines on an all-reduce of float32: what each rank does, that it is proved, and how long it takes.

    Parameters
    ----------
    algorithm : str
        A name of `ALLREDUCES`.
    num_ranks, num_machines : int
        Neighbours share a machine.
    nbytes : int
        Of the array.
    costs : Costs

    Raises
    ------
    InputError
        There is no such algorithm, or it cannot be had for these ranks.
    """
    from hpdl_mpi.base.errors import InputError, require
    from hpdl_mpi.base.shares import share
    from hpdl_mpi.comm.check import check_allreduce
    from hpdl_mpi.comm.collectives import ALLREDUCES
    from hpdl_mpi.comm.predict import predict

    if algorithm not in ALLREDUCES:
        raise InputError(
            "no such algorithm", where="--algorithm", found=repr(algorithm), expected=" or ".join(ALLREDUCES)
        )
    require("--ranks", num_ranks, num_ranks <= MAX_RANKS, f"at most {MAX_RANKS}")
    require("--size", nbytes, nbytes <= MAX_BYTES, f"at most {MAX_BYTES} bytes, or the proof takes long")
    require("--machines", num_machines, num_machines <= num_ranks, f"at most {num_ranks}, the number of ranks")
    kind = ALLREDUCES[algorithm]
    if kind.one_machine and num_machines > 1:
        raise InputError(
            "its ranks share memory", where=f"--algorithm {algorithm}", found=f"{num_machines} machines", expected=1
        )
    bounds = [share(num_ranks, node, num_machines) for node in range(num_machines)]
    nodes = [node for node, (first, last) in enumerate(bounds) for _ in range(first, last)]
    num_elements = -(-nbytes // _ITEMSIZE)
    programs = [kind.programs(nodes, num_elements, rank) for rank in range(num_ranks)]
    check_allreduce(programs, num_elements, in_window=kind.in_window)
    machines = f" on {num_machines} machines" if num_machines > 1 else ""
    yield f"allreduce, {algorithm}: {num_ranks} ranks{machines}, {num_elements} elements of float32"
    for rank, program in enumerate(programs[:_SHOWN_RANKS]):
        yield f"rank {rank}"
        yield from _rounds(program)
    if num_ranks > _SHOWN_RANKS:
        yield f"and {num_ranks - _SHOWN_RANKS} more ranks"
    yield ""
    yield "proved       every rank ends with every contribution once; no rank waits for ever, and none races"
    yield f"traffic      {_traffic(programs, num_elements)}"
    yield f"time         {predict(programs, _ITEMSIZE, costs):.3g} s, from the costs given"


def _rounds(program: Program) -> Iterator[str]:
    for number, steps in enumerate(program[:_SHOWN_ROUNDS]):
        shown = "; ".join(map(str, steps[:_SHOWN_STEPS]))
        more = f"; and {len(steps) - _SHOWN_STEPS} more" if len(steps) > _SHOWN_STEPS else ""
        yield f"  {number:3d}  {shown}{more}"
    if len(program) > _SHOWN_ROUNDS:
        yield f"       and {len(program) - _SHOWN_ROUNDS} more rounds"


def _traffic(programs: Sequence[Program], num_elements: int) -> str:
    """Say what the busiest rank sends and moves, in arrays."""
    from hpdl_mpi.comm.schedule import Op

    def most(*ops: Op) -> float:
        moved = [sum(step.size for steps in program for step in steps if step.op in ops) for program in programs]
        return max(moved) / max(num_elements, 1)

    sent, shared = most(Op.SEND), most(Op.COPY, Op.READ, Op.READ_REDUCE, Op.WRITE)
    least = 2 * (len(programs) - 1) / len(programs)
    parts = [f"a rank sends {sent:.3g} times its array (the least that a sum needs is {least:.3g})"] if sent else []
    parts += [f"it moves {shared:.3g} times its array through shared memory"] if shared else []
    return "; ".join(parts) or "none"
