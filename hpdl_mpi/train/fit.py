"""From a model that is put together, and data, to a trained model: what `Trainer.fit` does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpdl_mpi import weights
from hpdl_mpi.base.errors import HpdlError, InputError, MismatchError, in_line, is_integer, require
from hpdl_mpi.base.files import write_json
from hpdl_mpi.base.output import counted
from hpdl_mpi.comm import agree
from hpdl_mpi.comm.choice import read_table, table_path
from hpdl_mpi.data import Loader
from hpdl_mpi.data.sampler import Shuffle
from hpdl_mpi.nn import Shape
from hpdl_mpi.optim import Schedule
from hpdl_mpi.parallel import Replica, TrainingStep
from hpdl_mpi.train import checkpoint
from hpdl_mpi.train.assembly import Assembly
from hpdl_mpi.train.evaluation import Evaluator
from hpdl_mpi.train.job import Checkpoint, EarlyStopping
from hpdl_mpi.train.launch import patient_seconds
from hpdl_mpi.train.loop import TrainingLoop
from hpdl_mpi.train.metrics import Meter, Metrics
from hpdl_mpi.train.progress import Progress, Recipe
from hpdl_mpi.train.report import headline, make_reporter, open_report
from hpdl_mpi.train.restore import plain_values, require_alike, require_same_call, restore
from hpdl_mpi.train.runfolder import MetricsLog, RunFolder
from hpdl_mpi.train.signals import StopSignals
from hpdl_mpi.train.source import PathLike, Source
from hpdl_mpi.train.tracing import Recorder, check_trace, describe_communication, describe_times, explain
from hpdl_mpi.train.vocabulary import keep_tokenizers, require_kept_tokens, require_same_tokens


@dataclass(frozen=True)
class Course:
    """What a run shall do; see `Trainer` and `Trainer.fit`.

    Attributes
    ----------
    source : Source
        Of the training data.
    """

    source: Source
    global_batch_size: int
    epochs: int | None
    steps: int | None
    validate: PathLike | None
    shuffle: Shuffle
    eval_every: int | None
    early_stopping: EarlyStopping | None
    checkpoint: Checkpoint
    run_dir: PathLike | None
    resume: bool
    name: str | None
    trace: PathLike | None
    init: PathLike | None
    init_skip: Sequence[str]
    describe: Callable[[Source], dict[str, Any]] | None
    lr_schedule: Schedule
    clip_norm: float | None

    def share(self, num_ranks: int) -> int:
        """Return how many samples of a batch a data-parallel rank, or a pipeline, has at most."""
        return -(-self.global_batch_size // num_ranks)

    def check(self) -> None:
        """Raise an InputError if lengths are missing or impossible, or a run shall be judged without evaluations."""
        if (self.epochs is None) == (self.steps is None):
            found = f"epochs={self.epochs}, steps={self.steps}"
            raise InputError("give either epochs or steps", where="fit", found=found)
        for key, value in self._lengths().items():
            possible = is_integer(value, 1) or (value is None and key != "global_batch_size")
            require(f"training.{key}", value, possible, "an integer above 0")
        if self.init_skip and self.init is None:
            raise InputError("says what is left out of no file", where="fit: init_skip", remedy="give init")
        if self.early_stopping is not None and self.validate is None:
            remedy = "name test data: data.test, or `validate`"
            raise InputError("nothing to evaluate on", where="training.early_stopping", remedy=remedy, shared=True)

    def _lengths(self) -> dict[str, int | None]:
        keys = ("epochs", "steps", "eval_every", "global_batch_size")
        return {key: getattr(self, key) for key in keys}

    def settings(self, assembly: Assembly) -> dict[str, Any]:
        """Return all in which ranks must not differ."""
        parts = {"loss": assembly.loss, "optimizer": assembly.optimizer, "lr_schedule": self.lr_schedule}
        return (
            self._lengths()
            | {"shuffle": self.shuffle, "checkpoint": self.checkpoint, "resume": self.resume}
            | {"early_stopping": self.early_stopping, "ema": assembly.ema}
            | {key: getattr(self, key) is not None for key in ("validate", "run_dir", "trace", "init")}
            | {"init_skip": tuple(self.init_skip)}
            | {"parallel": assembly.parallel, "clip_norm": self.clip_norm}
            | {key: (type(part).__name__, plain_values(part)) for key, part in parts.items()}
        )


def fit(assembly: Assembly, course: Course) -> dict[str, Any]:
    """Train, and return the summary of the run. Collective.

    Parameters
    ----------
    assembly : Assembly
        Without a replica yet.
    course : Course

    Returns
    -------
    dict
        What ``summary.json`` holds.

    Raises
    ------
    InputError
        Data, model and loss do not fit together, or the run folder cannot be used.
    TrainingError
        The loss is not finite, or ranks have drifted apart.
    StorageError
        A checkpoint could not be written.
    Stopped
        A signal asked for an end; the state is saved if there is a run folder.
    """
    began = time.perf_counter()
    with assembly.comm.watched(patient_seconds(assembly.parallel.timeout_seconds)):
        return _fit(assembly, course, began)


def _fit(assembly: Assembly, course: Course, began: float) -> dict[str, Any]:
    comm, grid = assembly.comm, assembly.grid
    require_same_call(comm, course.settings(assembly))
    if comm.size > 1:
        agree(comm, lambda: read_table(table_path()))  # a damaged one is refused before anything is compiled or made
    trace = Path(course.trace) if course.trace is not None else None
    if trace is not None:
        agree(comm, lambda: check_trace(trace))
    folder = RunFolder(course.run_dir) if course.run_dir is not None else None
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignals(course.checkpoint.signal))
        input_shape = _claim(stack, assembly, course, folder)
        open_report(grid, assembly.threads)
        assembly.plan(input_shape, course.share(grid.shape["dp"]))
        loader, tests = _open_loaders(stack, assembly, course)
        assembly.build(input_shape, loader)
        replica = assembly.replica
        meter = Meter.of(assembly.loss, replica.output_shape, assembly.source.unit)
        agree(comm, lambda: _check_watched(course, meter))
        checkpoints = folder.checkpoints if folder and course.resume else None
        recipe = _recipe(assembly, course)
        place = {"index": grid.coordinate("dp"), "count": grid.shape["dp"]}
        progress = restore(comm, replica, loader.dataset, recipe, checkpoints, lambda: _begin(replica, course), **place)
        num_steps = _num_steps(course, loader, done=replica.step)
        reporter = make_reporter(comm.rank, num_steps, replica.step)
        stack.callback(reporter.close)
        log = _begin_log(stack, assembly, course, folder, progress) if folder and comm.rank == 0 else None
        reporter.say(headline(replica, loader, num_steps))
        step = _training_step(assembly, course, num_flags=len(signals.numbers))
        for remark in (*_remarks(assembly, course, loader, num_steps), *_remarks_on_sums(assembly, step)):
            reporter.say(remark)
        recorder = Recorder(trace, step, replica, grid) if trace is not None else None
        loop = TrainingLoop(
            grid=grid,
            replica=replica,
            loss=assembly.loss,
            optimizer=assembly.optimizer,
            schedule=course.lr_schedule,
            step=step,
            loader=loader,
            evaluator=Evaluator(replica, assembly.loss, tests, comm, meter) if tests else None,
            num_steps=num_steps,
            eval_every=course.eval_every,
            early_stopping=course.early_stopping,
            checkpoints=course.checkpoint,
            folder=folder,
            progress=progress,
            log=log,
            reporter=reporter,
            signals=signals,
            meter=meter,
            recorder=recorder,
            began=began,
        )
        with comm.watched(assembly.parallel.timeout_seconds):
            metrics = _run(loop, step)
        if recorder and recorder.times:
            reporter.say(describe_times(recorder.times))
            if recorder.communication:
                reporter.say(describe_communication(recorder.communication))
        summary = _summary(assembly, course, loop, metrics)
        if folder and comm.rank == 0:
            write_json(folder.summary, summary)
    return summary


def _training_step(assembly: Assembly, course: Course, num_flags: int) -> TrainingStep:
    """Return the step as the settings want it. Collective."""
    parallel = assembly.parallel
    return TrainingStep(
        assembly.replica,
        assembly.loss,
        assembly.grid,
        clip_norm=course.clip_norm,
        num_flags=num_flags,
        bucket_bytes=round(parallel.bucket_cap_mb * 1e6),
        algorithm=parallel.algorithm,
        compression=parallel.wire,
        shared_memory=parallel.shared_memory,
        sync_batch_norm=parallel.sync_batch_norm,
    )


def _run(loop: TrainingLoop, step: TrainingStep) -> Metrics | None:
    """Take the steps that are left, and return the last evaluation. Collective."""
    try:
        metrics = loop.run()
    except MismatchError:  # others may be elsewhere
        raise
    except HpdlError as error:
        if error.shared:  # all ranks are here, and can give back together what they share
            step.free()
        raise
    step.free()
    return metrics


def _claim(stack: ExitStack, assembly: Assembly, course: Course, folder: RunFolder | None) -> Shape:
    """Refuse what cannot work, take the run folder and measure transforms; return the input's shape. Collective."""

    def check() -> tuple[Source, Shape]:
        source, num_ranks = course.source, assembly.grid.shape["dp"]
        shape = source.check(assembly.model, assembly.loss, num_ranks, key="data.train")
        if course.validate is not None:
            tests = source.at(course.validate)
            if source.context is not None or source.pairs:
                require_same_tokens(source.path, course.validate)
            tests.check(assembly.model, assembly.loss, num_ranks, shape, key="data.test")
        if folder and course.resume and folder.holds_checkpoint:
            require_kept_tokens(folder, source.path)
        elif course.init is not None:
            weights.check(weights.TensorFile(course.init), assembly.model, course.init_skip)
        if folder is not None:
            folder.claim(resume=course.resume)
        return source.measured(), shape

    if folder is not None:
        stack.callback(folder.release)
    assembly.source, shape = agree(assembly.comm, check)
    if folder is not None:
        require_alike(
            assembly.comm,
            folder.owner(),
            "ranks do not share the run folder",
            where=folder.path,
            remedy="put it on a file system that all nodes see, with --run-dir",
        )
    return shape


def _begin(replica: Replica, course: Course) -> None:
    """Let a run begin with the weights of a file, if it names one."""
    if course.init is not None:
        weights.fill(weights.TensorFile(course.init), replica.model, replica.arrays(), course.init_skip)


def _open_loaders(stack: ExitStack, assembly: Assembly, course: Course) -> tuple[Loader, Loader | None]:
    """Return the loader of the training data, and one of the test data if there are any."""
    loader = assembly.loader(course.source.path, course.global_batch_size, course.shuffle, training=True)
    stack.callback(loader.dataset.close)
    if course.validate is None:
        return loader, None
    tests = assembly.test_loader(course.validate, course.global_batch_size)
    stack.callback(tests.dataset.close)
    return loader, tests


def _recipe(assembly: Assembly, course: Course) -> Recipe:
    """Return what a checkpoint keeps of how this run learns."""
    source, replica = assembly.source, assembly.replica
    return Recipe(
        seed=assembly.seed,
        global_batch_size=course.global_batch_size,
        shuffle=course.shuffle,
        dtype=replica.dtype.name,
        slots=list(replica.slots),
        inputs=source.inputs,
        targets=source.targets,
        transform=source.transform,
        target_transform=source.target_transform,
        ema=assembly.ema,
        augment=source.augment,
        **source.kind,
    )


def _check_watched(course: Course, meter: Meter) -> None:
    """Raise an InputError if early stopping watches what evaluations do not give."""
    if course.early_stopping is not None and course.early_stopping.metric not in meter.names:
        raise InputError(
            "evaluations of this model do not give that metric",
            where="training.early_stopping.metric",
            found=course.early_stopping.metric,
            expected=" or ".join(meter.names),
        )


def _num_steps(course: Course, loader: Loader, done: int) -> int:
    """Return the steps of the whole run; raise if more are done: it would end as if it were at its end."""
    per_epoch = -(-loader.dataset.num_samples // course.global_batch_size)
    num_steps = course.steps or per_epoch * (course.epochs or 0)
    if done > num_steps:
        raise InputError(
            "the run has gone further than it shall",
            where=f"training.{'steps' if course.steps else 'epochs'}",
            found=f"{num_steps} steps in all",
            expected=f"at least {done}, which are done",
            remedy="let it end there or later, or start a new run with --run-dir",
            shared=True,
        )
    return num_steps


def _remarks(assembly: Assembly, course: Course, loader: Loader, num_steps: int) -> Iterator[str]:
    """Yield what a user may not have meant, and what a run begins with."""
    replica, batch, num_samples = assembly.replica, course.global_batch_size, loader.dataset.num_samples
    if course.lr_schedule.warmup_steps >= num_steps:
        yield f"the run ends within its warm-up of {course.lr_schedule.warmup_steps} steps"
    if batch > num_samples:
        yield f"a batch of {batch:,} is larger than the data: every step sees all of it"
    share, num_parts = course.share(assembly.grid.shape["dp"]), assembly.pipeline.schedule.num_microbatches
    if num_parts > share:
        yield f"{num_parts:,} micro-batches share {counted(share, 'sample')}: in every step, some of them are empty"
    if course.init is not None and replica.step == 0:
        found = weights.check(weights.TensorFile(course.init), replica.model, course.init_skip)
        count = len({tensor.name for tensor in found.values()})
        yield f"begins with {count} of {len(weights.tensors(replica.model))} tensors from {in_line(course.init)}"


def _remarks_on_sums(assembly: Assembly, step: TrainingStep) -> Iterator[str]:
    """Yield what settings of the sums of gradients do not do here."""
    compression = assembly.parallel.compression
    if compression is not None and not step.compressed:
        ways = " and ".join(sorted({*step.algorithms}))
        why = f"sums by {ways} send nothing that it shortens" if ways else "no gradients are summed over ranks"
        yield f"parallel.compression = {compression!r} changes nothing: {why}"
    if step.lacks_memory:
        why = "too little memory to share (/dev/shm), or no more windows of the MPI library"
        yield f"the machine has {why}: gradients go by messages, which is slower"


def _begin_log(
    stack: ExitStack, assembly: Assembly, course: Course, folder: RunFolder, progress: Progress
) -> MetricsLog:
    """Write what the run is, and return the log of its metrics."""
    replica = assembly.replica
    stack.callback(_give_up, folder, replica)
    if course.describe:
        write_json(folder.job, course.describe(assembly.source))
    if course.source.context is not None or course.source.pairs:
        keep_tokenizers(folder, course.source.path)
    # With early stopping a resumed run repeats the evaluation of what its checkpoint holds.
    kept = 0 if course.early_stopping else replica.step
    return stack.enter_context(closing(MetricsLog(folder.metrics, progress.metrics_bytes, kept)))


def _give_up(folder: RunFolder, replica: Replica) -> None:
    """Let another run begin in the folder if this one ends before its first step."""
    if replica.step == 0:
        folder.give_up()


def _summary(assembly: Assembly, course: Course, loop: TrainingLoop, metrics: Metrics | None) -> dict[str, Any]:
    replica, grid, progress, recorder = assembly.replica, assembly.grid, loop.progress, loop.recorder
    extras: dict[str, Any] = {}
    if course.early_stopping:
        extras["early_stopping"] = {"stopped": loop.stopped_early} | asdict(progress.watch)
    if recorder and recorder.times:
        extras["trace"] = explain(recorder.times, recorder.communication)
    return {
        "model": course.name or type(assembly.model).__name__,
        "num_parameters": replica.num_parameters,
        "world_size": assembly.comm.size,
        "num_nodes": assembly.comm.num_nodes,
        "threads": assembly.threads,
        "dp": grid.shape["dp"],
        "pp": grid.shape["pp"],
        "num_microbatches": assembly.pipeline.schedule.num_microbatches,
        "cuts": list(assembly.pipeline.cuts),
        "epochs": progress.epoch,
        "steps": replica.step,
        "global_batch_size": course.global_batch_size,
        "ema": assembly.ema,
        "train_loss": progress.train_loss,
        "test_loss": metrics.loss if metrics else None,
        "test_accuracy": metrics.accuracy if metrics else None,
        "test_top5": metrics.top5 if metrics else None,
        "test_rmse": metrics.rmse if metrics else None,
        "samples_per_second": progress.samples / progress.seconds if progress.seconds else None,
        "wall_seconds": progress.wall_seconds,
        "parameters_digest": checkpoint.digest(replica),
        "allreduce": loop.step.algorithms,
        **extras,
    }
