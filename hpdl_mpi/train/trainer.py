"""The trainer: from a model and data to a trained model, on any number of ranks."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

from hpdl_mpi.base.errors import HpdlError, InputError, require
from hpdl_mpi.base.files import write_json
from hpdl_mpi.comm import Communicator, agree, world
from hpdl_mpi.data import Batch, Loader, Transform
from hpdl_mpi.data.hdf5 import memory_dtype
from hpdl_mpi.data.sampler import Shuffle
from hpdl_mpi.nn import Layer, Loss, Shape
from hpdl_mpi.optim import Constant, Optimizer, Schedule
from hpdl_mpi.parallel import ProcessGrid, Replica, TrainingStep
from hpdl_mpi.parallel.grid import check_shape
from hpdl_mpi.parallel.pipeline import Pipeline
from hpdl_mpi.plan import Task, plan_pipeline
from hpdl_mpi.train import checkpoint as checkpoints
from hpdl_mpi.train.evaluation import Evaluator
from hpdl_mpi.train.job import Checkpoint, Parallel
from hpdl_mpi.train.launch import first_on_node, rehearse, rehearse_evaluation, start_threads
from hpdl_mpi.train.loop import TrainingLoop
from hpdl_mpi.train.metrics import Metrics
from hpdl_mpi.train.progress import Progress, Recipe
from hpdl_mpi.train.report import headline, make_reporter
from hpdl_mpi.train.restore import plain_values, require_alike, require_same_call, restore
from hpdl_mpi.train.runfolder import MetricsLog, RunFolder
from hpdl_mpi.train.signals import StopSignals
from hpdl_mpi.train.source import AS_STORED, PathLike, Source
from hpdl_mpi.train.tracing import Recorder, check_trace, describe_times, explain

_EVALUATED = 256
"""Samples of a batch that is evaluated or predicted, unless told."""

_TEST_SHARE = 32
"""Samples of an evaluation batch that each rank has at least."""


class Trainer:
    """Trains a model on all ranks of the job. Constructing one is collective, and so are its methods.

    Parameters
    ----------
    model : Layer
        Not built; it belongs to the trainer from now on.
    loss : Loss
    optimizer : Optimizer
    lr_schedule : Schedule, optional
        Constant by default.
    parallel : Parallel, optional
        The grid of ranks, their threads and the pipeline; by default all ranks are data-parallel.
    dtype : {"float32", "float64"}
    seed : int
    accumulate : int
        Another name for the number of micro-batches in `parallel`, where there is no pipeline.
    clip_norm : float, optional
        Upper bound of the gradient's global norm.
    comm : Communicator, optional
        By default all ranks of the job.
    """

    def __init__(
        self,
        model: Layer,
        *,
        loss: Loss,
        optimizer: Optimizer,
        lr_schedule: Schedule | None = None,
        parallel: Parallel | None = None,
        dtype: str = "float32",
        seed: int = 0,
        accumulate: int = 1,
        clip_norm: float | None = None,
        comm: Communicator | None = None,
    ) -> None:
        self.comm = world() if comm is None else comm
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.schedule = lr_schedule or Constant()
        self.parallel = (parallel or Parallel()).accumulating(accumulate)
        self.grid = self._make_grid(self.parallel)
        self.threads = start_threads(self.comm, self.parallel.threads)
        self._dtype, self._seed = dtype, seed
        self._clip_norm = clip_norm
        self._pipeline = Pipeline()
        self._replica: Replica | None = None
        self._source = Source("")

    def _make_grid(self, parallel: Parallel) -> ProcessGrid:
        size, pp = self.comm.size, parallel.pp
        if parallel.dp is None and size % pp:
            expected = f"a divisor of {size}, the number of ranks that the launcher started"
            raise InputError(
                "pipelines do not fit the ranks",
                where="parallel.pp",
                found=pp,
                expected=expected,
                remedy="start as many ranks as pipelines need, or change parallel.pp",
                shared=True,
            )
        shape = {"pp": pp, "dp": parallel.dp or size // pp}
        agree(self.comm, lambda: check_shape(shape, size))
        return ProcessGrid(self.comm, shape)

    def _plan(self, input_shape: Shape, max_share: int) -> Pipeline:
        """Return how the model is cut and a batch divided: rank 0 measures for all. Collective."""
        settings = self.parallel
        num_slots = len(self.optimizer.slots)
        task = Task(self.model, input_shape, self.loss, self._dtype, num_slots, settings.recompute)
        schedule, cuts = agree(
            self.comm,
            lambda: plan_pipeline(
                task,
                num_ranks=settings.pp,
                max_share=max_share,
                schedule=settings.schedule,
                num_chunks=settings.num_chunks,
                num_microbatches=settings.num_microbatches,
                cuts=settings.cuts,
                limit_bytes=settings.memory_limit,
            ),
        )
        return Pipeline(self.grid.axis("pp"), schedule, cuts, settings.recompute)

    def close(self) -> None:
        """Give back what the trainer holds of the MPI library, and the model; nobody may use it any more. Collective.

        Only programs that make very many trainers need it.
        """
        if self._replica is not None:
            self._replica.free()
            self._replica = None
        self.grid.free()

    @property
    def chosen(self) -> dict[str, Any]:
        """What was measured or chosen of the pipeline, by the keys of `Parallel`."""
        schedule = self._pipeline.schedule
        if schedule.num_stages == schedule.num_microbatches == 1:
            return {}
        cuts = {"cuts": list(self._pipeline.cuts)} if schedule.num_stages > 1 else {}
        return {"num_microbatches": schedule.num_microbatches} | cuts

    @property
    def replica(self) -> Replica:
        """This rank's part of the model, once `fit` or `load` has made it."""
        if self._replica is None:
            raise RuntimeError("the model is not built yet: call fit or load first")
        return self._replica

    def fit(
        self,
        train: PathLike,
        *,
        global_batch_size: int,
        epochs: int | None = None,
        steps: int | None = None,
        validate: PathLike | None = None,
        inputs: str = "x",
        targets: str = "y",
        transform: Transform | None = None,
        target_transform: Transform | None = None,
        shuffle: Shuffle = "block",
        eval_every: int | None = None,
        checkpoint: Checkpoint | None = None,
        run_dir: PathLike | None = None,
        resume: bool = False,
        name: str | None = None,
        trace: PathLike | None = None,
        describe: Callable[[Source], dict[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """Train, and return the summary of the run. Collective.

        Parameters
        ----------
        train : path-like
            A folder of shards, a glob, or an HDF5 file.
        global_batch_size : int
            Samples of a batch over all ranks: 1 for stochastic descent, all samples for batch descent.
        epochs, steps : int
            Length of the run: one of both.
        validate : path-like, optional
            Data to evaluate on after every epoch and at the end.
        inputs, targets : str
            Names of the arrays.
        transform, target_transform : Transform, optional
            What is done to inputs, and to the targets of a regression.
        shuffle : {"block", "global", "none"}
        eval_every : int, optional
            Steps between evaluations, instead of one after every epoch.
        checkpoint : Checkpoint, optional
            When to save and how much to keep.
        run_dir : path-like, optional
            Where metrics, checkpoints and the summary are written; without it, nothing is.
        resume : bool
            Continue from the latest checkpoint in `run_dir`.
        name : str, optional
            Of the model, for the summary.
        trace : path-like, optional
            Record some steps of all ranks into this file, for chrome://tracing or Perfetto, and a picture beside it.
        describe : callable, optional
            Returns what the run folder shall say of the job, from the source as it will be used: its transforms
            measured.

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
        if (epochs is None) == (steps is None):
            raise InputError("give either epochs or steps", where="fit", found=f"epochs={epochs}, steps={steps}")
        lengths = {"epochs": epochs, "steps": steps, "eval_every": eval_every, "global_batch_size": global_batch_size}
        for key, value in lengths.items():
            possible = value is None or (isinstance(value, int) and value > 0)
            require(f"training.{key}", value, possible, "an integer above 0")
        if self._replica is not None:
            raise RuntimeError("this trainer holds a trained model already: make a new one to train again")
        began = time.perf_counter()
        checkpoint = checkpoint or Checkpoint()
        parts = {"loss": self.loss, "optimizer": self.optimizer, "lr_schedule": self.schedule}
        require_same_call(
            self.comm,
            lengths
            | {"shuffle": shuffle, "checkpoint": checkpoint, "resume": resume}
            | {"validate": validate is not None, "run_dir": run_dir is not None, "trace": trace is not None}
            | {"parallel": self.parallel, "clip_norm": self._clip_norm}
            | {key: (type(part).__name__, plain_values(part)) for key, part in parts.items()},
        )
        if trace is not None:
            agree(self.comm, lambda: check_trace(Path(trace)))
        source = Source(train, inputs, targets, transform or AS_STORED, target_transform or AS_STORED)
        folder = RunFolder(run_dir) if run_dir is not None else None
        with ExitStack() as stack:
            signals = stack.enter_context(StopSignals(checkpoint.signal))
            input_shape = self._claim(stack, source, validate, folder, resume)
            self._pipeline = self._plan(input_shape, -(-global_batch_size // self.grid.shape["dp"]))
            loader = self._loader(train, global_batch_size, shuffle)
            tests = self._test_loader(validate, global_batch_size) if validate is not None else None
            for opened in filter(None, (loader, tests)):
                stack.callback(opened.dataset.close)
            first_on_node(self.grid, lambda: self._build(input_shape, loader))
            checkpointed = folder.checkpoints if folder and resume else None
            recipe = self._recipe(global_batch_size, shuffle)
            progress = restore(self.comm, self.replica, loader.dataset, recipe, checkpointed)
            num_steps = steps or -(-loader.dataset.num_samples // global_batch_size) * (epochs or 0)
            self._refuse_shorter("steps" if steps else "epochs", num_steps)
            reporter = make_reporter(self.comm.rank, num_steps, self.replica.step)
            stack.callback(reporter.close)
            log = self._begin_log(stack, folder, progress, describe)
            reporter.say(headline(self.grid, self.threads, self.replica, loader, num_steps))
            unit = self._source.unit
            step = TrainingStep(
                self.replica, self.loss, self.grid, clip_norm=self._clip_norm, num_flags=len(signals.numbers)
            )
            recorder = Recorder(Path(trace), step, self.replica, self.grid) if trace is not None else None
            loop = TrainingLoop(
                grid=self.grid,
                replica=self.replica,
                loss=self.loss,
                optimizer=self.optimizer,
                schedule=self.schedule,
                step=step,
                loader=loader,
                evaluator=Evaluator(self.replica, self.loss, tests, self.comm, unit) if tests else None,
                num_steps=num_steps,
                eval_every=eval_every,
                checkpoints=checkpoint,
                folder=folder,
                progress=progress,
                log=log,
                reporter=reporter,
                signals=signals,
                unit=unit,
                recorder=recorder,
                began=began,
            )
            summary = self._summary(name, global_batch_size, progress, loop.run())
            if recorder and recorder.times:
                summary["trace"] = explain(recorder.times)
                reporter.say(describe_times(recorder.times))
            if folder and self.comm.rank == 0:
                write_json(folder.summary, summary)
        return summary

    def load(self, checkpoint: PathLike) -> None:
        """Build the model and fill it from a checkpoint, which also says how samples are prepared. Collective.

        Parameters
        ----------
        checkpoint : path-like
            A folder ``step-...`` of a run with this model and this kind of optimizer.

        Raises
        ------
        InputError
            The checkpoint is damaged, or of another model.
        """
        path = Path(checkpoint)
        input_shape = agree(self.comm, lambda: tuple(checkpoints.read_manifest(path)["input_shape"]))
        self._pipeline = self._plan(input_shape, _EVALUATED)
        first_on_node(self.grid, lambda: self._build(input_shape, None))
        recipe = checkpoints.load(path, self.replica).recipe
        self._source = Source("", recipe.inputs, recipe.targets, recipe.transform, recipe.target_transform)

    def evaluate(self, data: PathLike, *, batch_size: int = _EVALUATED) -> Metrics:
        """Return the metrics of a dataset, prepared like the training data. Collective.

        Parameters
        ----------
        data : path-like
        batch_size : int
            Samples of a batch over all ranks.
        """
        source, shape = self._source.at(data), self.replica.input_shape
        agree(self.comm, lambda: source.check(self.model, self.loss, self.grid.shape["dp"], shape))
        loader = self._loader(data, batch_size, "none")
        with loader.dataset:
            first_on_node(self.grid, lambda: self._rehearse(loader, rehearse_evaluation))
            return Evaluator(self.replica, self.loss, loader, self.comm, self._source.unit)()

    def predict(self, inputs: np.ndarray, *, batch_size: int = _EVALUATED) -> np.ndarray:
        """Return the model's outputs for samples as they are stored, in the targets' own units.

        Collective on a pipeline, whose ranks all give the same samples and get all outputs; local without one.

        Parameters
        ----------
        inputs : array, shape (n, ...)
            Any number type; transformed like the training data.
        batch_size : int
            Samples of a forward pass.

        Returns
        -------
        array, shape (n, ...)
            Raw outputs: logits of a classification, values of a regression.
        """
        transform, replica = self._source.transform, self.replica
        shape = transform.output_shape(inputs.shape[1:])
        if shape != replica.input_shape:
            raise InputError("samples of another shape", where="inputs", found=shape, expected=replica.input_shape)
        result = np.empty((len(inputs), *replica.output_shape), replica.dtype)
        for start in range(0, len(inputs), batch_size):
            raw = inputs[start : start + batch_size]
            raw = np.ascontiguousarray(raw, memory_dtype(raw.dtype))
            x = np.empty((len(raw), *shape), replica.dtype)
            transform.apply(raw, x)
            result[start : start + batch_size] = replica.predict(x, np.arange(start, start + len(raw)))
        if self.loss.task == "regression":
            self._source.target_transform.inverse(result)
        return result

    def _claim(
        self, stack: ExitStack, source: Source, validate: PathLike | None, folder: RunFolder | None, resume: bool
    ) -> Shape:
        """Refuse what cannot work, take the run folder and measure transforms; return the input's shape. Collective."""

        def check() -> tuple[Source, Shape]:
            num_ranks = self.grid.shape["dp"]
            shape = source.check(self.model, self.loss, num_ranks, key="data.train")
            if validate is not None:
                source.at(validate).check(self.model, self.loss, num_ranks, shape, key="data.test")
            if folder is not None:
                folder.claim(resume=resume)
            return source.measured(), shape

        if folder is not None:
            stack.callback(folder.release)
        self._source, shape = agree(self.comm, check)
        if folder is not None:
            require_alike(
                self.comm,
                folder.owner(),
                "ranks do not share the run folder",
                where=folder.path,
                remedy="put it on a file system that all nodes see, with --run-dir",
            )
        return shape

    def _recipe(self, global_batch_size: int, shuffle: Shuffle) -> Recipe:
        """Return what a checkpoint keeps of how this run learns."""
        source, replica = self._source, self.replica
        return Recipe(
            seed=self._seed,
            global_batch_size=global_batch_size,
            shuffle=shuffle,
            dtype=replica.dtype.name,
            slots=list(replica.slots),
            inputs=source.inputs,
            targets=source.targets,
            transform=source.transform,
            target_transform=source.target_transform,
        )

    def _begin_log(
        self,
        stack: ExitStack,
        folder: RunFolder | None,
        progress: Progress,
        describe: Callable[[Source], dict[str, Any]] | None,
    ) -> MetricsLog | None:
        """Write what the run is, and return the log of its metrics; rank 0 alone does, if there is a run folder."""
        if folder is None or self.comm.rank != 0:
            return None
        if describe:
            write_json(folder.job, describe(self._source))
        return stack.enter_context(closing(MetricsLog(folder.metrics, progress.metrics_bytes, self.replica.step)))

    def _loader(self, path: PathLike, batch_size: int, shuffle: Shuffle) -> Loader:
        classifies = self.loss.task == "classification"
        return Loader(
            self._source.at(path).open(),
            global_batch_size=batch_size,
            seed=self._seed,
            shuffle=shuffle,
            dp_rank=self.grid.coordinate("dp"),
            dp_size=self.grid.shape["dp"],
            transform=self._source.transform,
            target_transform=None if classifies else self._source.target_transform,
            dtype=self._dtype,
            reads_inputs=self._pipeline.reads_inputs,
            reads_targets=self._pipeline.reads_targets,
        )

    def _test_loader(self, path: PathLike, train_batch_size: int) -> Loader:
        """Return a loader of samples to evaluate on; tiny batches of training would only cost time here."""
        return self._loader(path, max(train_batch_size, _TEST_SHARE * self.grid.shape["dp"]), "none")

    def _build(self, input_shape: Shape, loader: Loader | None) -> None:
        """Make the replica, and run every kernel once if there is data to run them on."""
        if self._replica is not None:
            self._replica.release()
        self._replica = Replica(
            self.model,
            input_shape,
            self.optimizer,
            dtype=self._dtype,
            seed=self._seed,
            pipeline=self._pipeline,
            # The node's other ranks build after its first, when that one's share is taken already.
            ranks_on_node=self.comm.node_size if self.comm.node_rank == 0 else 0,
        )
        if loader is not None:
            try:
                self._rehearse(loader, rehearse)
            except HpdlError:
                self._replica.release()
                self._replica = None  # nothing was trained: the data can be mended, and `fit` called again
                raise

    def _rehearse(self, loader: Loader, run: Callable[[Replica, Batch, Loss], None]) -> None:
        """Let `run` compile what it needs, on one sample for each rank."""
        with loader.dataset.naming_files(), closing(loader.epoch(0, limit=self.grid.shape["dp"])) as batches:
            run(self.replica, next(batches), self.loss)

    def _refuse_shorter(self, key: str, num_steps: int) -> None:
        """Raise if the run has done more steps than it shall have: it would end as if it were done."""
        if self.replica.step > num_steps:
            raise InputError(
                "the run has gone further than it shall",
                where=f"training.{key}",
                found=f"{num_steps} steps in all",
                expected=f"at least {self.replica.step}, which are done",
                remedy="let it end there or later, or start a new run with --run-dir",
                shared=True,
            )

    def _summary(
        self, name: str | None, global_batch_size: int, progress: Progress, metrics: Metrics | None
    ) -> dict[str, Any]:
        return {
            "model": name or type(self.model).__name__,
            "num_parameters": self.replica.num_parameters,
            "world_size": self.comm.size,
            "num_nodes": self.comm.num_nodes,
            "threads": self.threads,
            "dp": self.grid.shape["dp"],
            "pp": self.grid.shape["pp"],
            "num_microbatches": self._pipeline.schedule.num_microbatches,
            "cuts": list(self._pipeline.cuts),
            "epochs": progress.epoch,
            "steps": self.replica.step,
            "global_batch_size": global_batch_size,
            "train_loss": progress.train_loss,
            "test_loss": metrics.loss if metrics else None,
            "test_accuracy": metrics.accuracy if metrics else None,
            "test_rmse": metrics.rmse if metrics else None,
            "samples_per_second": progress.samples / progress.seconds if progress.seconds else None,
            "wall_seconds": progress.wall_seconds,
            "parameters_digest": checkpoints.digest(self.replica),
        }
