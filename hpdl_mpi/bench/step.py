"""``hpdl bench step``: a full training step (forward, loss, backward, update, gradients zeroed), ours and PyTorch's."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.bench.contender import Contender, pool_sizes, worker_command
from hpdl_mpi.bench.machine import describe_command, describe_machine, describe_versions
from hpdl_mpi.bench.rounds import Turns, play, require_rounds
from hpdl_mpi.bench.statistics import pairwise_ratio, spread
from hpdl_mpi.bench.workloads import WORKLOADS

OURS = "hpdl"

STEP_MODELS = tuple(WORKLOADS)
"""The models that can be timed."""

TORCH: dict[str, dict[str, bool]] = {
    "torch-eager": {},
    "torch-channels-last": {"channels_last": True},
    "torch-compile": {"channels_last": True, "compiled": True},
}
"""PyTorch's ways to run a model in float32, with what `step_torch.load` makes of each."""

TORCH_BF16 = {"torch-bf16": {"channels_last": True, "bf16": True}}
"""The way that rounds: products in bfloat16, by autocast."""

OWN: dict[str, dict[str, Any]] = {"one-thread": {"threads": 1}, "exact": {"exact": True}}
"""Our own step in another way, with what it changes of the settings: on one thread; without Winograd's method."""

_REMEDY = "Install PyTorch with pip install 'hpdl_mpi[bench]'; torch-compile needs a C++ compiler (g++) too"


def bench_step(
    model: str,
    batch: int,
    threads: int,
    vs: str | None = None,
    *,
    num_rounds: int = 10,
    turn_seconds: float = 1.0,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Time training steps of a model in float32, with SGD and momentum, on synthetic samples.

    Parameters
    ----------
    model : str
        One of `STEP_MODELS`.
    batch : int
        Samples of a step.
    threads : int
        Of each contender.
    vs : str, optional
        A key of `TORCH`, `TORCH_BF16` or `OWN`, or ``"torch"`` for all of `TORCH` that suit the model.
    num_rounds : int
    turn_seconds : float
        About how long each contender computes in each round; one step at least.
    say : callable
        Shown what goes on.

    Returns
    -------
    dict
        Ready for JSON. ``step_seconds`` is the median over rounds and ``peak_bytes`` the peak above the level after
        imports, ours at the top and the others' under ``vs``; ``ratio`` is the best of the others' ``step_seconds``
        over ours, and ``ratio_by_round`` the spread of the ratios within each round.

    Raises
    ------
    InputError
        An argument is out of range, or a contender cannot run.
    ContenderError
        A contender crashed or hung.
    """
    check_settings(model, batch, threads, num_rounds)
    others, notes = choose(model, vs)
    needs_torch = any(name not in OWN for name in others)
    if needs_torch and importlib.util.find_spec("torch") is None:
        raise InputError("PyTorch is not installed", where=f"--vs {vs}", remedy=_REMEDY)
    settings = {"model": model, "batch": batch, "threads": threads}
    machine = describe_machine()
    with ExitStack() as stack:
        contenders = []
        for name in (OURS, *others):
            say(f"warming up {name}")
            with make_contender(name, settings):
                pass  # fills the compilers' caches on disk, for what a compiler leaves in memory is no step's
            contenders.append(stack.enter_context(make_contender(name, settings)))
        check_twins(contenders)
        turns = play(contenders, num_rounds, turn_seconds, say)
    return {
        **settings,
        "precision": "float32",
        **report(turns, batch),
        "rounds": num_rounds,
        "notes": notes,
        "machine": machine,
        "versions": describe_versions(*(["torch"] if needs_torch else [])),
        "command": describe_command(),
    }


def choose(model: str, vs: str | None) -> tuple[list[str], list[str]]:
    """Return the contenders that `vs` asks for, and notes on those that the model leaves out."""
    if vs is None:
        return [], []
    if vs == "exact" and not WORKLOADS[model].images:
        raise InputError(f"it is about convolutions, and {model} has none", where=f"--vs {vs}")
    if vs in OWN:
        return [vs], []
    if vs in TORCH_BF16:
        return [vs], [f"{vs} rounds to bfloat16 what it multiplies; {OURS} computes in float32"]
    if vs != "torch" and vs not in TORCH:
        known = "torch", *TORCH, *TORCH_BF16, *OWN, "another one on several ranks (mpirun -n 2)"
        raise InputError("unknown contender", where="--vs", found=repr(vs), expected=" or ".join(known))
    suitable = [name for name in TORCH if WORKLOADS[model].images or name != "torch-channels-last"]
    reason = f"torch-channels-last is left out: it is a layout of images, and {model} takes none"
    if vs == "torch":
        return suitable, [reason] if len(suitable) < len(TORCH) else []
    if vs not in suitable:
        raise InputError(reason, where="--vs", expected=" or ".join(suitable))
    return [vs], []


def make_contender(name: str, settings: Mapping[str, Any]) -> Contender:
    """Return a contender that is not started yet; its thread pools are bounded before any library makes them."""
    settings = {**settings, **OWN.get(name, {})}
    environ = pool_sizes(settings["threads"])
    if name == OURS or name in OWN:
        return Contender(name, worker_command("hpdl_mpi.bench.step_hpdl:load", settings), environ=environ)
    # Compile in the contender itself: a pool of compiling processes would outlive its use.
    environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    command = worker_command("hpdl_mpi.bench.step_torch:load", {**settings, **(TORCH | TORCH_BF16)[name]})
    return Contender(name, command, environ=environ, remedy=_REMEDY)


def check_twins(contenders: Sequence[Contender]) -> None:
    """See that all contenders train models of one size."""
    sizes = {one.name: one.ready["num_parameters"] for one in contenders}
    if len(set(sizes.values())) > 1:
        raise RuntimeError(f"the contenders' models differ in their numbers of parameters: {sizes}")


def report(turns: Mapping[str, Turns], batch: int) -> dict[str, Any]:
    """Return the figures of a result from the turns of all contenders, ours under `OURS`."""
    spreads = {name: spread(mine.step_seconds) for name, mine in turns.items()}
    medians = {name: numbers["median"] for name, numbers in spreads.items()}
    ours = medians.pop(OURS)
    return {
        "step_seconds": ours,
        "samples_per_second": batch / ours,
        "peak_bytes": turns[OURS].peak_bytes,
        "vs": {
            name: {"step_seconds": median, "peak_bytes": turns[name].peak_bytes} for name, median in medians.items()
        },
        "ratio": min(medians.values()) / ours if medians else None,
        "ratio_by_round": {
            name: pairwise_ratio(turns[name].step_seconds, turns[OURS].step_seconds) for name in medians
        },
        "spread": spreads,
        "steps_per_round": {name: mine.steps for name, mine in turns.items()},
        "step_seconds_by_round": {name: mine.step_seconds for name, mine in turns.items()},
    }


def check_settings(model: str, batch: int, threads: int, num_rounds: int) -> None:
    """Raise `InputError` unless there is such a model, and the numbers are in range."""
    if model not in WORKLOADS:
        raise InputError("unknown model", where="--model", found=repr(model), expected=" or ".join(WORKLOADS))
    from hpdl_mpi.kernels.threads import available_cores  # here: contenders import this module, some without Numba

    cores = len(available_cores())
    for option, value, most in (
        ("--batch", batch, None),
        ("--threads", threads, cores),
    ):
        if value < 1 or (most is not None and value > most):
            expected = "at least 1" if most is None else f"1 to {most}, the cores of this process"
            raise InputError("out of range", where=option, found=value, expected=expected)
    require_rounds(num_rounds)
