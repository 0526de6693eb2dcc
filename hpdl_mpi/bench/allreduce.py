"""``hpdl bench allreduce``: our all-reduces, the MPI library's and Gloo's, interleaved, on arrays of float32."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from hpdl_mpi.base.errors import InputError, require
from hpdl_mpi.base.files import write_json
from hpdl_mpi.base.memory import aligned, check_memory
from hpdl_mpi.bench.contender import Contender
from hpdl_mpi.bench.gloo import REMEDY, make_gloo_contender
from hpdl_mpi.bench.machine import describe_command, describe_machine, describe_versions
from hpdl_mpi.bench.rounds import require_rounds, turn_order
from hpdl_mpi.bench.statistics import pairwise_ratio, spread
from hpdl_mpi.comm import ALLREDUCES, AUTO, LIBRARY, Arena, Communicator, agree, agree_all, make_allreduce
from hpdl_mpi.comm.choice import Rule, Table, place_of, read_table, table_path

GLOO = "gloo"

COPY = "copy"
"""What a sum in shared memory is held against: each rank copies an array, which reads and writes as many bytes."""

_TUNED_FROM, _TUNED_TO = 64 << 10, 16 << 20
"""Bytes that a table's rules must reach from and to: what is fastest changes between them, and little beyond."""

_ONE_SHOT = "one_shot"
"""Has whole arrays in its windows, where others have a few pieces."""

_ITEMSIZE = 4
_MOST_STEPS = 2000
_WARM_TURNS = 3
_LEAST_SECONDS = 1e-7

Key = tuple[str, str]
"""A contender's name, and where its arrays lie."""

Turn = Callable[[int], float]
"""Does a number of steps and returns the seconds of all; collective."""


def bench_allreduce(
    comm: Communicator,
    sizes: Sequence[int],
    algorithms: Sequence[str] | None = None,
    *,
    vs: str | None = None,
    num_rounds: int = 10,
    turn_seconds: float = 0.02,
    tune: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Time all-reduces. Collective.

    Parameters
    ----------
    comm : Communicator
        MPI's.
    sizes : sequence of int
        Bytes of the array.
    algorithms : sequence of str, optional
        Names of `ALLREDUCES`, or `AUTO`; by default all that these ranks can use, each by one name: where there is one
        level, `hierarchical` is what is done there.
    vs : str, optional
        `GLOO`.
    num_rounds : int
    turn_seconds : float
        About how long each contender has in each round; one step at least.
    tune : bool
        Whether the result is for `write_rules`, which needs all algorithms, and short arrays as well as long ones.
    say : callable
        Shown on rank 0 what goes on.

    Returns
    -------
    dict
        Ready for JSON. ``rows`` has one for each size, algorithm and place of the arrays (``memory``): private, or
        windows that ranks share. ``seconds`` are of the slowest rank, the median over rounds; ``ratio`` is the
        library's over them. ``bus_bandwidth`` is the traffic that a ring has at each rank over these seconds. Each rank
        writes its array anew before each call, and the calls alone are timed; Gloo's turns are timed as a whole, on
        arrays that stay.

    Raises
    ------
    InputError
        An argument is out of range, there is too little memory, or a contender cannot run.
    ContenderError
        A contender crashed or hung.
    """
    agree(comm, lambda: _check(comm, sizes, algorithms, vs, num_rounds, tune=tune))
    names = list(algorithms or [AUTO, *(name for name in ALLREDUCES if _usable(comm, name) and _is_itself(comm, name))])
    agree_all(comm, lambda: _check_memory(comm, max(sizes), names, vs))
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        gloo = None
        if vs == GLOO:
            settings = {"max_bytes": max(sizes)}
            gloo = stack.enter_context(make_gloo_contender(comm, GLOO, "hpdl_mpi.bench.allreduce_torch:load", settings))
        for nbytes in sizes:
            if comm.rank == 0:
                say(f"{nbytes} bytes")
            with _contenders(comm, nbytes, names, gloo) as (turns, chosen):
                seconds = _play(comm, turns, num_rounds, turn_seconds)
            rows += _rows(comm, nbytes, seconds, chosen)
    return {
        "rows": rows,
        "num_ranks": comm.size,
        "num_nodes": comm.num_nodes,
        "place": place_of(comm),
        "crowded": comm.crowded,
        "rounds": num_rounds,
        "machine": describe_machine(),
        "versions": describe_versions("mpi4py", *(["torch"] if vs == GLOO else [])) | {"mpi": comm.library_name()},
        "command": describe_command(),
    }


def _check(
    comm: Communicator,
    sizes: Sequence[int],
    algorithms: Sequence[str] | None,
    vs: str | None,
    num_rounds: int,
    *,
    tune: bool,
) -> None:
    require_rounds(num_rounds)
    require("--sizes", sizes, len(sizes) > 0, "one or more")
    if tune and algorithms:
        raise InputError(
            "the fastest is found among all",
            where="--tune and --algorithm",
            found=",".join(algorithms),
            remedy="leave one of them out",
        )
    if tune and not (min(sizes) <= _TUNED_FROM and max(sizes) >= _TUNED_TO):
        raise InputError(
            "rules for sizes that were not measured would be guesses",
            where="--tune and --sizes",
            found=f"{min(sizes)} to {max(sizes)} bytes",
            expected=f"{_TUNED_FROM} or less to {_TUNED_TO} or more",
            remedy="leave out --sizes",
        )
    if not comm.library_name():
        remedy = "start it with mpirun -n 2 or more"
        raise InputError("one rank has nothing to sum", where="hpdl bench allreduce", remedy=remedy)
    for nbytes in sizes:
        require("--sizes", nbytes, nbytes >= _ITEMSIZE and nbytes % _ITEMSIZE == 0, "multiples of 4 bytes above 0")
    for name in algorithms or ():
        if name != AUTO and not (name in ALLREDUCES and _usable(comm, name)):
            usable = [AUTO, *(other for other in ALLREDUCES if _usable(comm, other))]
            raise InputError("cannot be used", where="--algorithm", found=repr(name), expected=" or ".join(usable))
    if vs not in (None, GLOO):
        raise InputError("unknown contender", where="--vs", found=repr(vs), expected=GLOO)
    if vs == GLOO and importlib.util.find_spec("torch") is None:
        raise InputError("PyTorch is not installed", where=f"--vs {vs}", remedy=REMEDY)


def _check_memory(comm: Communicator, nbytes: int, names: Sequence[str], vs: str | None) -> None:
    """Raise an `InputError` if this machine has too little memory to sum arrays of so many bytes."""
    in_windows = comm.num_nodes == 1 and nbytes <= comm.shareable_bytes()
    needed = nbytes * count_arrays(names, vs, in_windows=in_windows)
    remedy = "give smaller --sizes, or start fewer ranks on a machine"
    check_memory(needed, f"all-reduces of {nbytes:,} bytes", comm.node_size, remedy)


def count_arrays(names: Sequence[str], vs: str | None, *, in_windows: bool) -> int:
    """Return how many arrays of full length a rank has at once, see `_contenders`; other buffers are short."""
    count = 2  # its own, and what the library receives before it is added
    if in_windows:
        count += 2  # the one in a window, and what that is copied to
        count += 2 * (_ONE_SHOT in names)  # which takes two windows in turn
    return count + (vs == GLOO)


def _usable(comm: Communicator, name: str) -> bool:
    return comm.num_nodes == 1 or not ALLREDUCES[name].one_machine


def _is_itself(comm: Communicator, name: str) -> bool:
    """Return whether it is no other one by another name here: what has two levels is, where there is one."""
    kind = ALLREDUCES[name]
    has_two_levels = kind.shares and not kind.one_machine
    return not has_two_levels or 1 < comm.num_nodes < comm.size


@contextmanager
def _contenders(
    comm: Communicator, nbytes: int, names: Sequence[str], gloo: Contender | None
) -> Iterator[tuple[dict[Key, Turn], dict[Key, str]]]:
    """Make all that sum arrays of one size, and say what `AUTO` has chosen. `count_arrays` knows what they need."""
    array = aligned(nbytes // _ITEMSIZE, np.float32)
    arena = Arena(comm)
    arena.reserve(nbytes)
    turns: dict[Key, Turn] = {(LIBRARY, "private"): _turn(array, lambda: comm.library_allreduce(array))}
    chosen: dict[Key, str] = {}
    made = []
    for name in names:
        for memory, window in (("private", None), ("shared", arena.window)):
            if memory == "shared" and (window is None or comm.num_nodes > 1):
                continue
            if name != AUTO and ALLREDUCES[name].in_window != (memory == "shared"):
                continue
            mine = array if window is None else _part(arena, comm.rank, nbytes)
            made.append(make_allreduce(comm, mine, name, window=window))
            turns[name, memory] = _turn(mine, made[-1])
            chosen[name, memory] = made[-1].algorithm
    if arena.window is not None and comm.num_nodes == 1:
        shared, other = _part(arena, comm.rank, nbytes), aligned(array.size, array.dtype)
        turns[LIBRARY, "shared"] = _turn(shared, lambda: comm.library_allreduce(shared))
        turns[COPY, "shared"] = _turn(shared, lambda: np.copyto(other, shared))
    if gloo is not None:
        turns[GLOO, "private"] = lambda steps: gloo.ask(steps=steps, nbytes=nbytes)["seconds"]
    yield turns, chosen
    for work in made:
        work.free()
    arena.free()


def _part(arena: Arena, rank: int, nbytes: int) -> np.ndarray:
    part = arena.parts[rank]
    assert part is not None, "a rank shares memory with itself"
    return part[:nbytes].view(np.float32)


def _turn(array: np.ndarray, step: Callable[[], None]) -> Turn:
    def turn(steps: int) -> float:
        seconds = 0.0
        for _ in range(steps):
            array.fill(0.0)  # as backward does: what others read then lies in the cache of the core that wrote it
            start = time.perf_counter()
            step()
            seconds += time.perf_counter() - start
        return seconds

    return turn


def _play(comm: Communicator, turns: dict[Key, Turn], num_rounds: int, turn_seconds: float) -> dict[Key, list[float]]:
    """Let all take a turn in each round; return the mean step of each turn, of the slowest rank."""
    steps = {}
    for key, turn in turns.items():
        turn(1)
        comm.barrier()  # others may have to load kernels for longer
        warm = min(max(comm.allgather_obj(turn(2))) / 2 for _ in range(_WARM_TURNS))
        steps[key] = max(1, min(_MOST_STEPS, round(turn_seconds / max(warm, _LEAST_SECONDS))))
    means: dict[Key, list[float]] = {key: [] for key in turns}
    for number in range(num_rounds):
        for key in turn_order(list(turns), number):
            comm.barrier()
            means[key].append(max(comm.allgather_obj(turns[key](steps[key]))) / steps[key])
    return means


def _rows(
    comm: Communicator, nbytes: int, seconds: dict[Key, list[float]], chosen: dict[Key, str]
) -> Iterator[dict[str, Any]]:
    for (name, memory), picked in chosen.items():
        ours, theirs = seconds[name, memory], seconds[LIBRARY, memory]
        # Gloo's arrays are always private: it is what ranks would take that do not have theirs in windows.
        gloo, copy = seconds.get((GLOO, "private")), seconds.get((COPY, memory))
        yield {
            "nbytes": nbytes,
            "algorithm": name,
            "chosen": picked,
            "memory": memory,
            "seconds": median(ours),
            "bus_bandwidth": 2 * (comm.size - 1) / comm.size * nbytes / median(ours),
            "library_seconds": median(theirs),
            "ratio": median(theirs) / median(ours),
            "ratio_by_round": pairwise_ratio(theirs, ours),
            "spread": spread(ours),
            **({"gloo_seconds": median(gloo), "gloo_ratio": median(gloo) / median(ours)} if gloo else {}),
            **({"copy_seconds": median(copy), "copy_ratio": median(copy) / median(ours)} if copy else {}),
        }


def best_rules(rows: Sequence[dict[str, Any]]) -> list[Rule]:
    """Return what was fastest at each size for private arrays, the library's own where nothing of ours is faster.

    Between two sizes that were measured the winner of the lower one holds up to their geometric mean.
    """
    private = [row for row in rows if row["memory"] == "private"]
    winners: dict[int, str] = {}
    for nbytes in sorted({row["nbytes"] for row in private}):
        own = [row for row in private if row["nbytes"] == nbytes]
        entries = {row["chosen"]: row["seconds"] for row in own} | {LIBRARY: own[0]["library_seconds"]}
        winners[nbytes] = min(entries, key=lambda name: entries[name])
    sizes = list(winners)
    made = [
        Rule(up_to=math.isqrt(size * after), algorithm=winners[size])
        for size, after in pairwise(sizes)
        if winners[size] != winners[after]
    ]
    return [*made, Rule(algorithm=winners[sizes[-1]])]


def write_rules(result: dict[str, Any]) -> Path:
    """Write what was fastest into this user's table, beside what that says of other places; return its path."""
    path = table_path()
    rules = read_table(path).rules | {result["place"]: best_rules(result["rows"])}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, Table(rules=rules).model_dump())
    return path
