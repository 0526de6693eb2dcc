"""``hpdl bench step`` on several ranks: a data-parallel training step, ours and PyTorch's, beside one without sums."""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from hpdl_mpi.base.errors import InputError, require
from hpdl_mpi.base.trace import Span, Trace, now
from hpdl_mpi.bench import memory
from hpdl_mpi.bench.gloo import REMEDY, make_gloo_contender
from hpdl_mpi.bench.machine import describe_command, describe_machine, describe_versions
from hpdl_mpi.bench.players import ChildPlayer, Player, check_twins, play_together, wake_numba
from hpdl_mpi.bench.sleepers import asleep
from hpdl_mpi.bench.statistics import pairwise_ratio, spread
from hpdl_mpi.bench.step import OURS, check_settings, make_contender
from hpdl_mpi.bench.workloads import LEARNING_RATE, MOMENTUM, WORKLOADS, Workload
from hpdl_mpi.comm import AUTO, Communicator, SingleCommunicator, agree
from hpdl_mpi.data import Batch
from hpdl_mpi.kernels.threads import set_threads
from hpdl_mpi.models import MODELS
from hpdl_mpi.nn import CrossEntropy
from hpdl_mpi.optim import SGD
from hpdl_mpi.parallel import ProcessGrid, Replica, TrainingStep
from hpdl_mpi.parallel.buckets import GradientBuckets
from hpdl_mpi.parallel.communication import measure_communication
from hpdl_mpi.parallel.node_memory import share_memory
from hpdl_mpi.parallel.shards import Sharding
from hpdl_mpi.train.job import Parallel

TORCH_DDP: dict[str, dict[str, bool]] = {
    "torch-ddp": {"channels_last": True},
    "torch-ddp-compile": {"channels_last": True, "compiled": True},
}
"""PyTorch's data parallelism over Gloo, with what `step_torch.load` makes of each."""

SHARED_MEMORY = "shared-memory"

_BY_MEMORY: dict[str, dict[str, Any]] = {
    "private": {"shared_memory": "none"},
    "one-copy": {"shared_memory": "parameters"},
}
"""Our step without gradients in memory that ranks of a machine share, and with parameters there too."""

WATCHED = "watched"
"""Our step while no rank may wait for long."""

_WATCHED_SECONDS = 300.0

APART = "apart"
"""All ranks take our step at once, each by itself: what is left without communication."""

TORCH_ONE_RANK, _ALONE = "torch-one-rank", "torch-channels-last"
"""PyTorch's step on the first rank alone, by that one of its ways."""

ONE_RANK = "one-rank"
"""Our step on the first rank, while the others wait: what there was before there were several."""

SUMS = "sums-alone"
"""The sums of a step's gradients and nothing else: what there is to hide."""

_WARMUP_STEPS = 3


def bench_data_parallel(
    comm: Communicator,
    model: str,
    batch: int,
    threads: int,
    vs: str | None = None,
    *,
    sleep_seconds: float | None = None,
    num_rounds: int = 10,
    turn_seconds: float = 1.0,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Time training steps of a model in float32 on all ranks, with SGD and momentum, on synthetic samples. Collective.

    Parameters
    ----------
    comm : Communicator
        All ranks.
    model : str
    batch, threads : int
        Samples of a step, and threads, of each rank.
    vs : str, optional
        ``"torch-ddp"``: PyTorch's, eager and compiled; `SHARED_MEMORY`: our own there; `WATCHED`: our own.
    sleep_seconds : float, optional
        Let a stand-in of the same parameters sleep that long in each step, where the model would compute.
    num_rounds, turn_seconds, say
        See `bench_step`.

    Returns
    -------
    dict
        Ready for JSON, with the keys of `bench_step` and: ``speedup``, our samples per second over those of one rank;
        ``efficiency``, the step of ranks without communication over ours; ``one_rank_ratio``, PyTorch's step over ours
        where one rank plays alone; ``exposed_seconds``, how long ranks wait for
        sums in a step, and ``hidden``, the share of the sums' time alone in which they do not. ``ratio`` is the best of
        PyTorch's steps over ours.

    Raises
    ------
    InputError
        An argument is out of range, or a contender cannot run.
    ContenderError
        A contender crashed or hung.
    """
    agree(comm, lambda: _check(model, batch, threads, num_rounds, vs, sleep_seconds))
    subject = _Subject(model, sleep_seconds)
    set_threads(threads)
    wake_numba()
    with ExitStack() as stack:
        together, players = _players(stack, comm, subject, batch, threads, vs, say)
        check_twins(comm, players)
        seconds = play_together(comm, players, num_rounds, turn_seconds, say)
    peaks = {name: max(comm.allgather_obj(player.peak_bytes)) for name, player in players.items()}
    communication = measure_communication(comm.allgather_obj(together.spans))
    for player in players.values():
        if isinstance(player, _Ranks | _SumsAlone):
            player.free()
    exposed = communication.exposed if communication else 0.0
    return _result(comm, subject, batch, threads, seconds, peaks, exposed)


def _result(
    comm: Communicator,
    subject: _Subject,
    batch: int,
    threads: int,
    seconds: dict[str, list[float]],
    peaks: dict[str, int],
    exposed: float,
) -> dict[str, Any]:
    """Return the result from what was measured of each contender, and how long ranks wait in our step."""
    steps = {name: median(times) for name, times in seconds.items()}
    ours, names = steps[OURS], [name for name in steps if name != OURS]
    hidden = max(0.0, 1.0 - exposed / steps[SUMS])
    slept = subject.sleep_seconds
    stand_in = f"; a stand-in sleeps {1e3 * slept:.0f} ms where the model would compute" if slept else ""
    samples = {ONE_RANK: batch, TORCH_ONE_RANK: batch, SUMS: 0}
    one_rank_ratio = steps[TORCH_ONE_RANK] / steps[ONE_RANK] if TORCH_ONE_RANK in steps else None
    others = [steps[name] for name in names if name in TORCH_DDP]
    return {
        "model": subject.name,
        "batch": batch,
        "threads": threads,
        "num_ranks": comm.size,
        "num_nodes": comm.num_nodes,
        "precision": "float32",
        "step_seconds": ours,
        "samples_per_second": comm.size * batch / ours,
        "speedup": comm.size * steps[ONE_RANK] / ours,
        "efficiency": steps[APART] / ours,
        "exposed_seconds": exposed,
        "hidden": hidden,
        "sleep_seconds": slept,
        "peak_bytes": peaks[OURS],
        "vs": {
            name: {
                "step_seconds": steps[name],
                "samples_per_second": samples.get(name, comm.size * batch) / steps[name],
                "peak_bytes": peaks[name],
            }
            for name in names
        },
        "ratio": min(others) / ours if others else None,
        "one_rank_ratio": one_rank_ratio,
        "ratio_by_round": {name: pairwise_ratio(seconds[name], seconds[OURS]) for name in names},
        "spread": {name: spread(times) for name, times in seconds.items()},
        "step_seconds_by_round": seconds,
        "rounds": len(seconds[OURS]),
        "notes": [
            f"{APART}: {OURS} without sums, on all ranks at once; {ONE_RANK}: on the first alone; {SUMS}: no more than "
            "the sums of gradients",
            f"ranks wait {1e3 * exposed:.0f} ms for sums: {100 * hidden:.0f}% of their time is hidden{stand_in}",
            *([f"ratio to PyTorch where one rank plays alone: {one_rank_ratio:.2f}"] if one_rank_ratio else []),
        ],
        "machine": describe_machine(),
        "versions": describe_versions("mpi4py", *(["torch"] if others else [])) | {"mpi": comm.library_name()},
        "command": describe_command(),
    }


def _check(model: str, batch: int, threads: int, num_rounds: int, vs: str | None, sleep_seconds: float | None) -> None:
    check_settings(model, batch, threads, num_rounds)
    if sleep_seconds is not None:
        require("--sleep", sleep_seconds, sleep_seconds > 0, "above 0")
        if vs is not None:
            raise InputError("others compute", where="--sleep", found=f"--vs {vs}", expected="no --vs")
    if vs not in (None, SHARED_MEMORY, WATCHED, *TORCH_DDP):
        expected = f"{next(iter(TORCH_DDP))}, {SHARED_MEMORY} or {WATCHED}"
        raise InputError("no contender on several ranks", where="--vs", found=repr(vs), expected=expected)
    if vs in TORCH_DDP and importlib.util.find_spec("torch") is None:
        raise InputError("PyTorch is not installed", where=f"--vs {vs}", remedy=REMEDY)


def _players(
    stack: ExitStack,
    comm: Communicator,
    subject: _Subject,
    batch: int,
    threads: int,
    vs: str | None,
    say: Callable[[str], None],
) -> tuple[_Ranks, dict[str, Player]]:
    """Return our step, and all contenders by name, warm; the stack ends those that are processes. Collective."""
    _Ranks(comm, subject, batch).free()  # what kernels take to be compiled is not the step's memory
    gc.collect()  # layers and contexts know each other
    together, apart = _Ranks(comm, subject, batch), _Ranks(SingleCommunicator(), subject, batch)
    players: dict[str, Player] = {OURS: together, APART: apart, ONE_RANK: _on_one_rank(comm, apart)}
    players[SUMS] = _SumsAlone(comm, subject)
    for name, settings in _BY_MEMORY.items() if vs == SHARED_MEMORY else ():
        players[name] = _Ranks(comm, subject, batch, Parallel(**settings))
    if vs == WATCHED:
        players[WATCHED] = _watched(comm, together)
    for name in TORCH_DDP if vs in TORCH_DDP else ():
        if comm.rank == 0:
            say(f"warming up {name}")
        settings = {"model": subject.name, "batch": batch, **TORCH_DDP[name]}
        child = make_gloo_contender(comm, name, "hpdl_mpi.bench.step_torch:load", settings, threads=threads)
        players[name] = stack.enter_context(ChildPlayer(child))
    if vs in TORCH_DDP:
        child = make_contender(_ALONE, {"model": subject.name, "batch": batch, "threads": threads})
        players[TORCH_ONE_RANK] = _on_one_rank(comm, stack.enter_context(ChildPlayer(child)))
    return together, players


@dataclass(frozen=True)
class _Subject:
    """What is trained: a model, or what sleeps in its place."""

    name: str
    sleep_seconds: float | None

    @property
    def workload(self) -> Workload:
        """Its samples."""
        whole = WORKLOADS[self.name]
        return Workload((whole.num_classes,), whole.num_classes) if self.sleep_seconds else whole

    def replica(self, sharding: Sharding | None = None) -> Replica:
        """Return it, with its optimizer."""
        model = MODELS[self.name]()
        if self.sleep_seconds:
            model = asleep(model, WORKLOADS[self.name].input_shape, self.sleep_seconds)
        optimizer = SGD(LEARNING_RATE, momentum=MOMENTUM)
        return Replica(model, self.workload.input_shape, optimizer, dtype="float32", seed=0, sharding=sharding)


class _Ranks:
    """Our step on the ranks of a group, which share what the settings say.

    Attributes
    ----------
    spans : list of list of Span
        What went on in each step that counts.
    algorithms : list of str
        What sums each bucket of gradients.
    """

    def __init__(self, comm: Communicator, subject: _Subject, batch: int, settings: Parallel | None = None) -> None:
        settings = settings or Parallel()
        level = memory.resident()
        replica = subject.replica(settings.sharded(comm.rank, comm.nodes))
        self.spans: list[list[Span]] = []
        grid = ProcessGrid(comm, {"pp": 1, "dp": comm.size})
        self._step = TrainingStep(replica, CrossEntropy(), grid, shared_memory=settings.shared_memory)
        self.algorithms = self._step.algorithms
        offset = comm.rank * batch
        ids = np.arange(offset, offset + batch)
        self._batch = Batch(*subject.workload.batch(batch), ids, global_size=comm.size * batch, offset=offset)
        self.num_parameters = replica.num_parameters
        self._run()
        memory.reset_peak()
        self.warm_seconds = min(self._run() for _ in range(_WARMUP_STEPS))
        self.spans.clear()
        self.peak_bytes = memory.peak() - level

    def _run(self) -> float:
        trace = Trace()
        self._step.record(trace)
        start = now()
        self._step(self._batch, epoch=0, lr=LEARNING_RATE)
        self.spans.append(trace.spans)
        return now() - start

    def free(self) -> None:
        """Give back what ranks share; no turn is taken after it. Collective."""
        self._step.free()

    def turn(self, steps: int) -> float:
        """See `Player.turn`; one more step goes before those that count."""
        self._run()
        self.spans.pop()
        return sum(self._run() for _ in range(steps))


class _SumsAlone:
    """The sums of gradients that a step has, in the memory where it has them.

    Attributes
    ----------
    algorithms : list of str
        What sums each bucket.
    """

    def __init__(self, comm: Communicator, subject: _Subject) -> None:
        replica = subject.replica()
        grid = ProcessGrid(comm, {"pp": 1, "dp": comm.size})
        self._memory = share_memory(grid, replica, Parallel().shared_memory, AUTO)
        self._buckets = GradientBuckets(replica, comm, memory=self._memory)
        self.algorithms = self._buckets.algorithms
        self.num_parameters = replica.num_parameters
        self.peak_bytes = 0
        self.warm_seconds = min(self.turn(1) for _ in range(_WARMUP_STEPS))

    def turn(self, steps: int) -> float:
        """See `Player.turn`."""
        start = now()
        for _ in range(steps):
            self._buckets.stage_landed(0)
            for _ in self._buckets.wait():
                pass
        return now() - start

    def free(self) -> None:
        """See `_Ranks.free`."""
        self._buckets.free()
        if self._memory:
            self._memory.free()


class _Anew:
    """The step of another player, with a turn of its own."""

    def __init__(self, step: Player, turn: Callable[[int], float]) -> None:
        self.warm_seconds, self.num_parameters = step.warm_seconds, step.num_parameters
        self._step, self.turn = step, turn

    @property
    def peak_bytes(self) -> int:
        """See `Player`."""
        return self._step.peak_bytes


def _on_one_rank(comm: Communicator, step: Player) -> _Anew:
    """Return the step as the first rank alone takes it."""
    return _Anew(step, lambda steps: step.turn(steps) if comm.rank == 0 else 0.0)


def _watched(comm: Communicator, step: _Ranks) -> _Anew:
    """Return the step as ranks take it that are watched."""

    def turn(steps: int) -> float:
        with comm.watched(_WATCHED_SECONDS):
            return step.turn(steps)

    return _Anew(step, turn)
