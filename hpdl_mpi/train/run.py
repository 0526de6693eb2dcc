"""Runs of jobs: train one, or take up again what a run folder holds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpdl_mpi.base.errors import InputError, amended
from hpdl_mpi.comm import Communicator, agree
from hpdl_mpi.parallel.pipeline import FAMILIES
from hpdl_mpi.train import checkpoint
from hpdl_mpi.train.choices import (
    make_augment,
    make_loss,
    make_masking,
    make_model,
    make_optimizer,
    make_schedule,
    make_transforms,
    read_job,
)
from hpdl_mpi.train.job import Job, Parallel
from hpdl_mpi.train.runfolder import RunFolder, resumed_job
from hpdl_mpi.train.source import PathLike, Source
from hpdl_mpi.train.trainer import Trainer


def run_job(
    path: str | Path,
    comm: Communicator,
    *,
    overrides: Sequence[str] = (),
    run_dir: PathLike | None = None,
    resume: bool = False,
    trace: PathLike | None = None,
) -> dict[str, Any]:
    """Train the job of a file and return the summary of the run. Collective.

    Parameters
    ----------
    path : path-like
        The job file.
    comm : Communicator
        All ranks.
    overrides : sequence of str
        ``key.path=value``.
    run_dir : path-like, optional
        By default ``runs/<name of the job>``.
    resume : bool
        Continue the run in that folder.
    trace : path-like, optional
        See `Trainer.fit`.

    Raises
    ------
    InputError
        The job, its data or the run folder cannot be used; raised on every rank, before anything is allocated.
    """
    job, folder = agree(comm, lambda: _prepare(path, overrides, run_dir, resume, comm.size))
    with amended(f"{path}: "):
        trainer = make_trainer(job, comm)
    transform, target_transform = make_transforms(job)
    return trainer.fit(
        job.data.train,
        global_batch_size=job.training.global_batch_size,
        epochs=job.training.epochs,
        steps=job.training.steps,
        validate=job.data.test,
        inputs=job.data.inputs,
        targets=job.data.targets,
        transform=transform,
        target_transform=target_transform,
        augment=make_augment(job),
        context=job.data.context,
        pairs=job.data.pairs,
        bucket=job.data.bucket,
        masking=make_masking(job),
        shuffle=job.data.shuffle,
        eval_every=job.training.eval_every,
        early_stopping=job.training.early_stopping,
        init=job.init.file if job.init else None,
        init_skip=job.init.skip if job.init else (),
        checkpoint=job.checkpoint,
        run_dir=folder.path,
        resume=resume,
        trace=trace,
        name=job.model.name or job.model.factory,
        describe=lambda source: _resolved(job, source, trainer),
    )


def open_run(
    run: PathLike, comm: Communicator, *, pp: int = 1, ema: bool = True, best: bool = False
) -> tuple[Trainer, Job]:
    """Return a trainer that holds the model of a run's latest checkpoint, and the run's job. Collective.

    Parameters
    ----------
    run : path-like
        The run folder.
    comm : Communicator
        All ranks.
    pp : int
        Ranks of a pipeline, for a model that is too large for one. The run's own cuts are taken if it had as many.
    ema : bool
        Take the moving average of the weights, if the run has one.
    best : bool
        Take the best checkpoint, of a run with early stopping.

    Raises
    ------
    InputError
        The folder holds no run of a job, or no checkpoint.
    """
    folder = RunFolder(run)
    job = agree(comm, folder.read_job)
    with amended(f"{folder.job}: "):
        parallel = Parallel(pp=pp)
        if pp == job.parallel.pp > 1 and job.parallel.schedule in FAMILIES:  # a file may be gone by now
            parallel = job.parallel.model_copy(update={"dp": None, "threads": None})
        training = job.training.model_copy(update={"accumulate": 1})
        trainer = make_trainer(job.model_copy(update={"parallel": parallel, "training": training}), comm)
    chosen = agree(comm, lambda: _best(folder) if best else _latest(folder))
    trainer.load(chosen, ema=ema)
    return trainer, job


def make_trainer(job: Job, comm: Communicator) -> Trainer:
    """Return the trainer that a job describes. Collective."""
    return Trainer(
        make_model(job),
        loss=make_loss(job),
        optimizer=make_optimizer(job),
        lr_schedule=make_schedule(job),
        parallel=job.parallel,
        dtype=job.training.dtype,
        seed=job.seed,
        accumulate=job.training.accumulate,
        clip_norm=job.training.clip_norm,
        ema=job.training.ema,
        comm=comm,
    )


def _prepare(
    path: str | Path, overrides: Sequence[str], run_dir: PathLike | None, resume: bool, num_ranks: int
) -> tuple[Job, RunFolder]:
    """Read and check all that the job says, without touching data or allocating anything."""
    job = read_job(path, overrides)
    folder = RunFolder(run_dir if run_dir is not None else Path("runs", job.name))
    paths = {"train": _absolute(job.data.train), "test": job.data.test and _absolute(job.data.test)}
    parallel = job.parallel
    if parallel.schedule.lower().endswith(".csv"):
        parallel = parallel.model_copy(update={"schedule": _absolute(parallel.schedule)})
    init = job.init and job.init.model_copy(update={"file": _absolute(job.init.file)})
    job = job.model_copy(update={"data": job.data.model_copy(update=paths), "parallel": parallel, "init": init})
    if resume and folder.job.exists():
        job = resumed_job(job, folder.read_job(), num_ranks)
    return job, folder


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _resolved(job: Job, source: Source, trainer: Trainer) -> dict[str, Any]:
    """Return the job with every measured or automatic choice in it."""
    tree = job.model_dump(exclude_none=True)
    tree["data"]["transform"] = asdict(source.transform)
    tree["data"]["target_transform"] = asdict(source.target_transform)
    tree["parallel"] |= {"dp": trainer.grid.shape["dp"], "threads": trainer.threads} | trainer.chosen
    return tree


def make_source(job: Job) -> Source:
    """Return where a job's training samples come from, and how they are prepared."""
    data = job.data
    return Source(
        data.train,
        data.inputs,
        data.targets,
        *make_transforms(job),
        make_augment(job),
        context=data.context,
        pairs=data.pairs,
        bucket=data.pairs if data.bucket is None else data.bucket,
        masking=make_masking(job),
    )


def _best(folder: RunFolder) -> Path:
    best = folder.checkpoints / checkpoint.BEST
    if not best.exists():
        raise InputError(
            "the run has no best checkpoint",
            where=folder.path,
            remedy="leave out --best: only runs with training.early_stopping have one, from their first evaluation on",
        )
    return best.resolve()


def _latest(folder: RunFolder) -> Path:
    latest = checkpoint.latest(folder.checkpoints)
    if latest is None:
        raise InputError("the run has no checkpoint yet", where=folder.path, remedy="let it train to its first one")
    return latest
