"""``hpdl bench loader``: how fast samples are read, augmented and transformed, beside the step that learns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hpdl_mpi.base.errors import InputError, require
from hpdl_mpi.bench.contender import Contender, pool_sizes, worker_command
from hpdl_mpi.bench.machine import describe_command, describe_machine, describe_versions
from hpdl_mpi.bench.rounds import Turns, play, require_rounds
from hpdl_mpi.bench.statistics import spread
from hpdl_mpi.data import Dataset
from hpdl_mpi.kernels.threads import available_cores
from hpdl_mpi.train.choices import make_loss, make_model, read_job
from hpdl_mpi.train.run import make_source

LOADER, STEP, TOGETHER = "loader", "step", "together"

_DATA_BATCH = 128
"""Samples of a batch of a dataset without a job."""


def bench_loader(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    batch: int | None = None,
    threads: int = 1,
    num_rounds: int = 10,
    turn_seconds: float = 1.0,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Time a job's loader on one rank, its training step on a batch that is there already, and both together.

    The loader alone prepares one batch after the other in its one thread, none ahead. Blocks of files stay in memory as
    in training (see `data.samples.CACHE_BYTES`).

    Parameters
    ----------
    path : Path
        A job, or a dataset: its samples are read as they are stored, and there is no step.
    overrides : sequence of str
        ``key.path=value``, for a job.
    batch : int, optional
        Samples of a batch; by default the job's global batch, or 128. At most those that there are.
    threads : int
        Of the training step.
    num_rounds : int
    turn_seconds : float
        About how long each contender works in each round; one step at least.
    say : callable
        Shown what goes on.

    Returns
    -------
    dict
        Ready for JSON. ``samples_per_second`` and ``peak_bytes`` (above the level after imports) of "loader", "step"
        and "together"; ``bottleneck`` is the slower of the first two, and ``ratio`` the loader's rate over the step's.

    Raises
    ------
    InputError
        An argument is out of range, or the job or its data cannot be used.
    ContenderError
        A contender crashed or hung.
    """
    cores = len(available_cores())
    require("--threads", threads, 1 <= threads <= cores, f"1 to {cores}, the cores of this process")
    require_rounds(num_rounds)
    require("--batch", batch, batch is None or batch >= 1, "at least 1")
    names, wanted, available = _check(path, overrides)
    settings: dict[str, Any] = {
        "path": str(path),
        "overrides": list(overrides),
        "batch": min(batch or wanted, available),
        "threads": threads,
    }
    with ExitStack() as stack:
        contenders = []
        for name in names:
            say(f"warming up {name}")
            contenders.append(stack.enter_context(_contender(name, settings)))
        turns = play(contenders, num_rounds, turn_seconds, say)
    return {
        **settings,
        "num_samples": available,
        **report(turns, settings["batch"]),
        "rounds": num_rounds,
        "machine": describe_machine(),
        "versions": describe_versions("h5py"),
        "command": describe_command(),
    }


def is_job(path: Path) -> bool:
    """Tell whether a path names a job and no dataset."""
    return path.suffix in (".toml", ".json")


def report(turns: Mapping[str, Turns], batch: int) -> dict[str, Any]:
    """Return the figures of a result from the turns of all contenders, in batches of `batch` samples."""
    spreads = {name: spread(mine.step_seconds) for name, mine in turns.items()}
    rates = {name: batch / numbers["median"] for name, numbers in spreads.items()}
    known = STEP in rates
    return {
        "samples_per_second": rates,
        "bottleneck": min((LOADER, STEP), key=rates.__getitem__) if known else None,
        "ratio": rates[LOADER] / rates[STEP] if known else None,
        "peak_bytes": {name: mine.peak_bytes for name, mine in turns.items()},
        "spread": spreads,
        "batches_per_round": {name: mine.steps for name, mine in turns.items()},
        "batch_seconds_by_round": {name: mine.step_seconds for name, mine in turns.items()},
    }


def _check(path: Path, overrides: Sequence[str]) -> tuple[tuple[str, ...], int, int]:
    """Return who takes part, the samples of a batch and those of the dataset; raise if a contender could not start."""
    if not is_job(path):
        if overrides:
            raise InputError("a dataset has no keys", where="--set", found=path, remedy="give the job that uses it")
        with Dataset.open(path) as dataset:
            return (LOADER,), _DATA_BATCH, dataset.num_samples
    job = read_job(path, overrides)
    source = make_source(job)
    source.check(make_model(job), make_loss(job), num_ranks=1, key="data.train")
    with source.open() as dataset:
        return (LOADER, STEP, TOGETHER), job.training.global_batch_size, dataset.num_samples


def _contender(name: str, settings: Mapping[str, Any]) -> Contender:
    command = worker_command(f"hpdl_mpi.bench.loader_hpdl:{name}", settings)
    return Contender(name, command, environ=pool_sizes(settings["threads"]))
