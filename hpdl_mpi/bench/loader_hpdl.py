"""The contenders of ``hpdl bench loader``: a job's loader, its training step, and both as a run has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

from hpdl_mpi.bench.loader import is_job
from hpdl_mpi.bench.subject import Subject
from hpdl_mpi.bench.workloads import LEARNING_RATE
from hpdl_mpi.comm import SingleCommunicator
from hpdl_mpi.data import Batch, Dataset, Loader
from hpdl_mpi.kernels.threads import set_threads
from hpdl_mpi.parallel import TrainingStep
from hpdl_mpi.train.assembly import Assembly
from hpdl_mpi.train.choices import make_loss, make_model, make_optimizer, read_job
from hpdl_mpi.train.job import Job, Parallel
from hpdl_mpi.train.run import make_source


def loader(path: str, overrides: list[str], batch: int, threads: int) -> Callable[[], Subject]:
    """Return what builds a loader that makes each batch when it is asked for."""
    set_threads(threads)

    def build() -> Subject:
        if is_job(Path(path)):
            job = read_job(path, overrides)
            assembly = _assemble(job, threads)
            reader = assembly.loader(assembly.source.path, batch, job.data.shuffle, training=True, depth=0)
        else:
            reader = Loader(Dataset.open(path), global_batch_size=batch, depth=0)
        batches = _endless(reader)
        return Subject(lambda: next(batches), 0)

    return build


def step(path: str, overrides: list[str], batch: int, threads: int) -> Callable[[], Subject]:
    """Return what builds the training step on one batch, which is there already."""
    set_threads(threads)

    def build() -> Subject:
        learn, assembly, batches = _training(path, overrides, batch, threads)
        samples = next(batches)
        return Subject(lambda: learn(samples, epoch=0, lr=LEARNING_RATE), assembly.replica.num_parameters)

    return build


def together(path: str, overrides: list[str], batch: int, threads: int) -> Callable[[], Subject]:
    """Return what builds the training step with the loader, which reads ahead."""
    set_threads(threads)

    def build() -> Subject:
        learn, assembly, batches = _training(path, overrides, batch, threads)
        return Subject(lambda: learn(next(batches), epoch=0, lr=LEARNING_RATE), assembly.replica.num_parameters)

    return build


def _training(
    path: str, overrides: list[str], batch: int, threads: int
) -> tuple[TrainingStep, Assembly, Iterator[Batch]]:
    job = read_job(path, overrides)
    assembly = _assemble(job, threads)
    reader = assembly.loader(assembly.source.path, batch, job.data.shuffle, training=True)
    assembly.plan(reader.input_shape, batch)
    assembly.build(reader.input_shape, reader)
    learn = TrainingStep(assembly.replica, assembly.loss, assembly.grid, clip_norm=job.training.clip_norm)
    return learn, assembly, _endless(reader)


def _assemble(job: Job, threads: int) -> Assembly:
    """Return the parts of a job on one rank, without its pipeline."""
    parallel = job.parallel if job.parallel.pp == 1 else Parallel()
    assembly = Assembly(
        make_model(job),
        make_loss(job),
        make_optimizer(job),
        parallel=parallel.model_copy(update={"dp": 1, "threads": threads}).accumulating(job.training.accumulate),
        dtype=job.training.dtype,
        seed=job.seed,
        ema=job.training.ema,
        comm=SingleCommunicator(),
    )
    assembly.source = make_source(job).measured()
    return assembly


def _endless(reader: Loader) -> Iterator[Batch]:
    """Yield the batches of one epoch after another, whole ones alone."""
    size = reader.global_batch_size
    for epoch in count():
        yield from reader.epoch(epoch, limit=reader.dataset.num_samples // size * size)
