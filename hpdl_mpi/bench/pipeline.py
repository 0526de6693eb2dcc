"""``hpdl bench pipeline``: a training step on the ranks of a pipeline, ours and PyTorch's, or two schedules of ours."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.bench import memory
from hpdl_mpi.bench.gloo import REMEDY, make_gloo_contender
from hpdl_mpi.bench.machine import describe_command, describe_machine, describe_versions
from hpdl_mpi.bench.pipeline_hpdl import PipelineSubject
from hpdl_mpi.bench.pipeline_torch import TORCH_SCHEDULES
from hpdl_mpi.bench.players import ChildPlayer, Player, check_twins, play_together, wake_numba
from hpdl_mpi.bench.rounds import require_rounds
from hpdl_mpi.bench.statistics import pairwise_ratio, spread
from hpdl_mpi.bench.torch_models import CUTTABLE
from hpdl_mpi.bench.workloads import WORKLOADS
from hpdl_mpi.comm import Communicator, agree
from hpdl_mpi.kernels.threads import set_threads
from hpdl_mpi.models import MODELS
from hpdl_mpi.nn import CrossEntropy
from hpdl_mpi.parallel.pipeline import FAMILIES, Schedule, compare, complete
from hpdl_mpi.plan import Task, plan_pipeline

TORCH = "torch-pipelining"


def bench_pipeline(
    comm: Communicator,
    model: str,
    schedule: str,
    num_microbatches: int,
    *,
    microbatch_size: int = 64,
    num_chunks: int | None = None,
    cuts: Sequence[int] | None = None,
    vs: str | None = None,
    num_rounds: int = 10,
    turn_seconds: float = 2.0,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Time training steps of a model in float32 on a pipeline of all ranks, with SGD and momentum. Collective.

    Parameters
    ----------
    comm : Communicator
        All ranks; each runs one thread.
    model : str
        One of `WORKLOADS` that can be cut.
    schedule : str
        See `make_schedule`.
    num_microbatches, microbatch_size : int
    num_chunks : int, optional
        Stages on each rank.
    cuts : sequence of int, optional
        Where stages begin; by default they take equal time.
    vs : str, optional
        `TORCH`, which gets the same cuts, schedule and micro-batches, or another schedule of ours, with its own cuts.
    num_rounds : int
    turn_seconds : float
        About how long each contender computes in each round.
    say : callable
        Shown on rank 0 what goes on.

    Returns
    -------
    dict
        Ready for JSON. ``step_seconds`` and ``predicted_seconds`` are of whole steps; bubbles leave the update out.
        ``peak_bytes`` is the most that a rank held above the level after its imports. ``ratio`` is the other's step
        over ours, medians over rounds.

    Raises
    ------
    InputError
        An argument is out of range, or a contender cannot run.
    ContenderError
        A contender crashed or hung.
    """
    agree(comm, lambda: _check(model, vs, schedule, num_rounds))
    set_threads(1)
    wake_numba()
    level = memory.resident()
    if comm.rank == 0:
        say("measuring layers")
    plan, cuts = _plan(comm, model, schedule, num_microbatches, microbatch_size, num_chunks, cuts)
    with ExitStack() as stack:
        ours = PipelineSubject(comm, model, microbatch_size, plan, cuts, level)
        players: dict[str, Player] = {schedule: ours}
        if vs == TORCH:
            players[TORCH] = stack.enter_context(_torch(comm, model, microbatch_size, schedule, plan, cuts))
        elif vs is not None:
            other, other_cuts = _plan(comm, model, vs, num_microbatches, microbatch_size, None, None)
            players[vs] = PipelineSubject(comm, model, microbatch_size, other, other_cuts, memory.resident())
        check_twins(comm, players)
        seconds = play_together(comm, players, num_rounds, turn_seconds, say)
    figures = {name: _figures(comm, player, name, seconds[name]) for name, player in players.items()}
    sizes = {"num_microbatches": num_microbatches, "microbatch_size": microbatch_size, "cuts": list(cuts)}
    return _result(comm, model, schedule, vs, {"num_stages": plan.num_stages} | sizes, figures, seconds)


def _result(
    comm: Communicator,
    model: str,
    schedule: str,
    vs: str | None,
    sizes: dict[str, Any],
    figures: dict[str, dict[str, Any]],
    seconds: dict[str, list[float]],
) -> dict[str, Any]:
    """Return the result from the figures of our schedule and, with `vs`, of the other contender."""
    ours, others = figures[schedule], {name: of for name, of in figures.items() if name != schedule}
    return {
        "model": model,
        "schedule": schedule,
        "num_ranks": comm.size,
        "num_nodes": comm.num_nodes,
        **sizes,
        **ours,
        "vs": others,
        "ratio": others[vs]["step_seconds"] / ours["step_seconds"] if vs is not None else None,
        "ratio_by_round": pairwise_ratio(seconds[vs], seconds[schedule]) if vs is not None else None,
        "rounds": len(seconds[schedule]),
        "machine": describe_machine(),
        "versions": describe_versions("mpi4py", *(["torch"] if vs == TORCH else [])),
        "command": describe_command(),
    }


def _check(model: str, vs: str | None, schedule: str, num_rounds: int) -> None:
    if model not in WORKLOADS:
        raise InputError("unknown model", where="--model", found=repr(model), expected=" or ".join(WORKLOADS))
    require_rounds(num_rounds)
    if vs == TORCH:
        if schedule not in TORCH_SCHEDULES:
            raise InputError(
                f"{TORCH} has no such schedule",
                where="--schedule",
                found=schedule,
                expected=" or ".join(TORCH_SCHEDULES),
            )
        if model not in CUTTABLE:
            expected = " or ".join(CUTTABLE)
            raise InputError(f"{TORCH} cannot be cut alike", where="--model", found=model, expected=expected)
        if importlib.util.find_spec("torch") is None:
            raise InputError("PyTorch is not installed", where=f"--vs {vs}", remedy=REMEDY)
    elif vs is not None and vs not in FAMILIES:
        expected = " or ".join((TORCH, *FAMILIES))
        raise InputError("unknown contender", where="--vs", found=repr(vs), expected=expected)
    elif vs == schedule:
        raise InputError("a schedule is compared with another one", where="--vs", found=vs)


def _plan(
    comm: Communicator,
    model: str,
    schedule: str,
    num_microbatches: int,
    microbatch_size: int,
    num_chunks: int | None,
    cuts: Sequence[int] | None,
) -> tuple[Schedule, tuple[int, ...]]:
    return agree(
        comm,
        lambda: plan_pipeline(
            Task(MODELS[model](), WORKLOADS[model].input_shape, CrossEntropy(), held=3),
            num_ranks=comm.size,
            max_share=num_microbatches * microbatch_size,
            schedule=schedule,
            num_chunks=num_chunks,
            num_microbatches=num_microbatches,
            cuts=cuts,
        ),
    )


def _figures(comm: Communicator, player: Player, name: str, seconds: Sequence[float]) -> dict[str, Any]:
    """Return what was measured of a contender, and what was predicted if it is ours. Collective."""
    measured = {
        "step_seconds": median(seconds),
        "peak_bytes": max(comm.allgather_obj(player.peak_bytes)),
        "spread": spread(seconds),
        "step_seconds_by_round": list(seconds),
    }
    if not isinstance(player, PipelineSubject):
        return measured
    plan = player.schedule
    times, _ = compare(complete(plan), player.recorded_steps())
    chunks = plan.num_stages // plan.num_ranks
    formula = FAMILIES[name].bubble(plan.num_ranks, plan.num_microbatches, chunks) if name in FAMILIES else None
    return measured | {
        "predicted_seconds": times.predicted,
        "update_seconds": times.update,
        "bubble_measured": times.bubble_measured,
        "bubble_predicted": times.bubble_predicted,
        "bubble_formula": None if formula is None else float(formula),
        "executor_overhead": times.overhead / times.step,
    }


def _torch(
    comm: Communicator, model: str, microbatch_size: int, schedule: str, plan: Schedule, cuts: Sequence[int]
) -> ChildPlayer:
    settings: dict[str, Any] = {
        "model": model,
        "microbatch_size": microbatch_size,
        "num_microbatches": plan.num_microbatches,
        "schedule": schedule,
        "cuts": list(cuts),
        "stage_ranks": list(plan.stage_ranks),
    }
    return ChildPlayer(make_gloo_contender(comm, TORCH, "hpdl_mpi.bench.pipeline_torch:load", settings))
