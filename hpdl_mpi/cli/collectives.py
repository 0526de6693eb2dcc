"""``hpdl schedule show`` of a collective: the program of every rank, proved and timed on paper."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpdl_mpi.comm.predict import Costs
    from hpdl_mpi.comm.schedule import Program

ALLREDUCE, REDUCE_SCATTER, ALL_GATHER = "allreduce", "reduce-scatter", "all-gather"
COLLECTIVES = (ALLREDUCE, REDUCE_SCATTER, ALL_GATHER)
"""Those that can be shown. Sums of all, and what ranks do that share the update: sum chunks, and collect them."""

_ENDS_WITH = {
    ALLREDUCE: "every contribution once",
    REDUCE_SCATTER: "every contribution to its own chunk once",
    ALL_GATHER: "the chunk of every rank",
}
_PASSES = {ALLREDUCE: 2, REDUCE_SCATTER: 1, ALL_GATHER: 1}
"""How often all but a chunk of the array must leave a rank."""

_RING = "ring"
_SHOWN_ROUNDS = 12
_SHOWN_STEPS = 8
_SHOWN_RANKS = 9
MAX_RANKS = 512
MAX_BYTES = 1 << 28
_ITEMSIZE = 4


def show_collective(
    name: str, algorithm: str, num_ranks: int, num_machines: int, nbytes: int, costs: Costs
) -> Iterator[str]:
    """Yield lines on a collective of float32: what each rank does, that it is proved, and how long it takes.

    Parameters
    ----------
    name : str
        One of `COLLECTIVES`.
    algorithm : str
        A name of `ALLREDUCES`; but for all-reduces ``ring`` alone.
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
    from hpdl_mpi.base.errors import require
    from hpdl_mpi.base.shares import share
    from hpdl_mpi.comm.predict import predict

    _check_algorithm(name, algorithm, num_machines)
    require("--ranks", num_ranks, num_ranks <= MAX_RANKS, f"at most {MAX_RANKS}")
    require("--size", nbytes, nbytes <= MAX_BYTES, f"at most {MAX_BYTES} bytes, or the proof takes long")
    require("--machines", num_machines, num_machines <= num_ranks, f"at most {num_ranks}, the number of ranks")
    bounds = [share(num_ranks, node, num_machines) for node in range(num_machines)]
    nodes = [node for node, (first, last) in enumerate(bounds) for _ in range(first, last)]
    num_elements = -(-nbytes // _ITEMSIZE)
    programs = _proved(name, algorithm, nodes, num_elements)
    machines = f" on {num_machines} machines" if num_machines > 1 else ""
    yield f"{name}, {algorithm}: {num_ranks} ranks{machines}, {num_elements} elements of float32"
    for rank, program in enumerate(programs[:_SHOWN_RANKS]):
        yield f"rank {rank}"
        yield from _rounds(program)
    if num_ranks > _SHOWN_RANKS:
        yield f"and {num_ranks - _SHOWN_RANKS} more ranks"
    yield ""
    yield f"proved       every rank ends with {_ENDS_WITH[name]}; no rank waits for ever, and none races"
    yield f"traffic      {_traffic(name, programs, num_elements)}"
    yield f"time         {predict(programs, _ITEMSIZE, costs):.3g} s, from the costs given"


def _check_algorithm(name: str, algorithm: str, num_machines: int) -> None:
    from hpdl_mpi.base.errors import InputError
    from hpdl_mpi.comm.collectives import ALLREDUCES, LIBRARY

    known = [*ALLREDUCES] if name == ALLREDUCE else [_RING]
    if name == ALLREDUCE and algorithm == LIBRARY:
        raise InputError(
            "the MPI library's own schedule is not known here",
            where=f"--algorithm {LIBRARY}",
            expected=" or ".join(known),
            remedy="time it with `mpirun -n 4 hpdl bench allreduce`",
        )
    if algorithm not in known:
        raise InputError("no such algorithm", where="--algorithm", found=repr(algorithm), expected=" or ".join(known))
    if ALLREDUCES[algorithm].one_machine and num_machines > 1:
        raise InputError(
            "its ranks share memory", where=f"--algorithm {algorithm}", found=f"{num_machines} machines", expected=1
        )


def _proved(name: str, algorithm: str, nodes: Sequence[int], num_elements: int) -> list[Program]:
    """Return the programs of all ranks, which do what they should."""
    from hpdl_mpi.comm.check import check_all_gather, check_allreduce, check_reduce_scatter
    from hpdl_mpi.comm.collectives import ALLREDUCES, ring_all_gather, ring_reduce_scatter

    num_ranks = len(nodes)
    if name == ALLREDUCE:
        kind = ALLREDUCES[algorithm]
        programs = [kind.programs(nodes, num_elements, rank) for rank in range(num_ranks)]
        check_allreduce(programs, num_elements, in_window=kind.in_window)
    elif name == REDUCE_SCATTER:
        programs = [ring_reduce_scatter(num_ranks, num_elements, rank) for rank in range(num_ranks)]
        check_reduce_scatter(programs, num_elements)
    else:
        programs = [ring_all_gather(num_ranks, num_elements, rank) for rank in range(num_ranks)]
        check_all_gather(programs, num_elements)
    return programs


def _rounds(program: Program) -> Iterator[str]:
    for number, steps in enumerate(program[:_SHOWN_ROUNDS]):
        shown = "; ".join(map(str, steps[:_SHOWN_STEPS]))
        more = f"; and {len(steps) - _SHOWN_STEPS} more" if len(steps) > _SHOWN_STEPS else ""
        yield f"  {number:3d}  {shown}{more}"
    if len(program) > _SHOWN_ROUNDS:
        yield f"       and {len(program) - _SHOWN_ROUNDS} more rounds"


def _traffic(name: str, programs: Sequence[Program], num_elements: int) -> str:
    """Say what the busiest rank sends and moves, in arrays."""
    from hpdl_mpi.comm.schedule import Op

    def most(*ops: Op) -> float:
        moved = [sum(step.size for steps in program for step in steps if step.op in ops) for program in programs]
        return max(moved) / max(num_elements, 1)

    sent, shared = most(Op.SEND), most(Op.COPY, Op.READ, Op.READ_REDUCE, Op.WRITE)
    least = _PASSES[name] * (len(programs) - 1) / len(programs)
    needs = "a sum needs" if name == ALLREDUCE else "it needs"
    known = "" if shared else f" (the least that {needs} is {least:.3g})"
    parts = [f"a rank sends {sent:.3g} times its array{known}"] if sent else []
    parts += [f"it moves {shared:.3g} times its array through shared memory"] if shared else []
    return "; ".join(parts) or "none"
