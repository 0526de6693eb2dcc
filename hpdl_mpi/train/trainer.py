"""The trainer: from a model and data to a trained model, on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from hpdl_mpi.base.errors import InputError, amended, is_flag, is_integer, is_one_of, require, require_kind
from hpdl_mpi.comm import Communicator, agree, world
from hpdl_mpi.data import Augment, Masking, Transform
from hpdl_mpi.data.hdf5 import memory_dtype
from hpdl_mpi.data.prepare import Preparation
from hpdl_mpi.data.prepare_tokens import TOKEN, TokenPreparation
from hpdl_mpi.data.sampler import SHUFFLES, Shuffle
from hpdl_mpi.nn import Layer, Loss
from hpdl_mpi.optim import Constant, Optimizer, Schedule
from hpdl_mpi.parallel import Replica
from hpdl_mpi.parallel.replica import checked_dtype, checked_seed
from hpdl_mpi.parallel.step import checked_clip_norm
from hpdl_mpi.train import checkpoint as checkpoints
from hpdl_mpi.train.assembly import Assembly
from hpdl_mpi.train.evaluation import Evaluator
from hpdl_mpi.train.export import export
from hpdl_mpi.train.fit import Course, fit
from hpdl_mpi.train.job import MODEL_NAME, Checkpoint, EarlyStopping, Parallel, is_model_name
from hpdl_mpi.train.launch import rehearse_evaluation
from hpdl_mpi.train.metrics import Meter, Metrics
from hpdl_mpi.train.source import AS_STORED, PATHS, UNCHANGED, PathLike, Source, array_names

_EVALUATED = 256
"""Samples of a batch that is evaluated or predicted, unless told."""


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
        Or NumPy's types of these names.
    seed : int
    accumulate : int
        Another name for the number of micro-batches in `parallel`, where there is no pipeline.
    clip_norm : float, optional
        Upper bound of the gradient's global norm, above 0.
    ema : float, optional
        Decay of a moving average of the weights, see `MovingAverage`: what is evaluated, predicted with and exported
        in their place.
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
        dtype: DTypeLike = "float32",
        seed: int = 0,
        accumulate: int = 1,
        clip_norm: float | None = None,
        ema: float | None = None,
        comm: Communicator | None = None,
    ) -> None:
        for key, value, kind, optional in (
            ("model", model, Layer, False),
            ("loss", loss, Loss, False),
            ("optimizer", optimizer, Optimizer, False),
            ("lr_schedule", lr_schedule, Schedule, True),
            ("parallel", parallel, Parallel, True),
            ("comm", comm, Communicator, True),
        ):
            require_kind(f"Trainer: {key}", value, kind, optional=optional)
        self._lr_schedule, self._clip_norm = lr_schedule or Constant(), checked_clip_norm(clip_norm)
        dtype, seed = checked_dtype(dtype), checked_seed(seed)
        self.comm = world() if comm is None else comm
        self.model, self.loss = model, loss
        settings = (parallel or Parallel()).accumulating(accumulate)
        self._assembly = Assembly(
            model, loss, optimizer, parallel=settings, dtype=dtype, seed=seed, ema=ema, comm=self.comm
        )
        self.grid, self.threads = self._assembly.grid, self._assembly.threads
        self._loaded_average = False

    @property
    def chosen(self) -> dict[str, Any]:
        """What was measured or chosen of the pipeline, by the keys of `Parallel`."""
        return self._assembly.chosen

    @property
    def replica(self) -> Replica:
        """This rank's part of the model, once `fit` or `load` has made it; an `InputError` before."""
        return self._assembly.replica

    @property
    def averaged(self) -> bool:
        """Whether evaluations and predictions take the moving average of the weights."""
        return self._loaded_average or self.replica.average is not None

    def fit(
        self,
        train: PathLike,
        *,
        global_batch_size: int,
        epochs: int | None = None,
        steps: int | None = None,
        validate: PathLike | None = None,
        inputs: str | None = None,
        targets: str | None = None,
        transform: Transform | None = None,
        target_transform: Transform | None = None,
        augment: Augment | None = None,
        context: int | None = None,
        pairs: bool = False,
        bucket: bool | None = None,
        masking: Masking | None = None,
        shuffle: Shuffle = "block",
        eval_every: int | None = None,
        early_stopping: EarlyStopping | None = None,
        checkpoint: Checkpoint | None = None,
        run_dir: PathLike | None = None,
        resume: bool = False,
        name: str | None = None,
        trace: PathLike | None = None,
        init: PathLike | None = None,
        init_skip: Sequence[str] = (),
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
        inputs, targets : str, optional
            Names of the arrays, by default ``x`` and ``y``, ``tokens`` of running text, ``source`` and ``target`` of
            pairs.
        transform, target_transform : Transform, optional
            What is done to inputs, and to the targets of a regression.
        augment : Augment, optional
            How images to learn from are varied, and in which size all are seen.
        context : int, optional
            Tokens of a window: `inputs` is then a flat array of tokens, and targets are what follows each of them.
        pairs : bool
            Inputs and targets are sequences of tokens, see `data.Pairs`.
        bucket : bool, optional
            Whether pairs of like lengths come in one batch; by default they do.
        masking : Masking, optional
            Hide some tokens of windows: these are then the targets, and -1 elsewhere, which the loss must ignore.
        shuffle : {"block", "global", "none"}
        eval_every : int, optional
            Steps between evaluations, instead of one after every epoch.
        early_stopping : EarlyStopping, optional
            End when evaluations no longer get better. Each has a checkpoint then; ``checkpoints/best`` in `run_dir` is
            the best one's, which is kept.
        checkpoint : Checkpoint, optional
            When to save and how much to keep.
        run_dir : path-like, optional
            Where metrics, checkpoints and the summary are written; without it, nothing is.
        resume : bool
            Continue from the latest checkpoint in `run_dir`.
        name : str, optional
            Of the model, for the summary: like a job's name, or ``module:function``.
        trace : path-like, optional
            Record some steps of all ranks into this file, for chrome://tracing or Perfetto, and a picture beside it.
        init : path-like, optional
            A .safetensors file of the weights that the run begins with, under PyTorch's names and in its layouts.
        init_skip : sequence of str
            Patterns of names that are left out on both sides, such as ``fc.*``: these parameters begin as without a
            file.
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
            Data, model and loss do not fit together, the run folder cannot be used, or the trainer holds a model.
        TrainingError
            The loss is not finite, or ranks have drifted apart.
        StorageError
            A checkpoint could not be written.
        Stopped
            A signal asked for an end; the state is saved if there is a run folder.
        """
        require_kind("fit: train", train, PATHS)
        for key, value, kind in (
            ("transform", transform, Transform),
            ("target_transform", target_transform, Transform),
            ("augment", augment, Augment),
            ("masking", masking, Masking),
            ("early_stopping", early_stopping, EarlyStopping),
            ("checkpoint", checkpoint, Checkpoint),
        ):
            require_kind(f"fit: {key}", value, kind, optional=True)
        for key, path in (("validate", validate), ("run_dir", run_dir), ("trace", trace), ("init", init)):
            require_kind(f"fit: {key}", path, PATHS, optional=True)
        for key, array in (("inputs", inputs), ("targets", targets)):
            named = array is None or isinstance(array, str)
            require(f"fit: {key}", array, named, "the name of an array in the data")
        require("fit: resume", resume, is_flag(resume), "true or false")
        require("fit: shuffle", shuffle, is_one_of(shuffle, SHUFFLES), " or ".join(SHUFFLES))
        require("fit: context", context, context is None or is_integer(context, 1), "an integer above 0, or None")
        require("fit: pairs", pairs, is_flag(pairs) and not (pairs and context), "true or false, and not with context")
        require("fit: bucket", bucket, bucket is None or (is_flag(bucket) and (pairs or not bucket)), "true for pairs")
        require("fit: masking", masking, masking is None or context is not None, "none without context")
        require("fit: name", name, name is None or is_model_name(name), MODEL_NAME)
        require("fit: describe", describe, describe is None or callable(describe), "a function, or None")
        patterns = isinstance(init_skip, list | tuple) and all(isinstance(pattern, str) for pattern in init_skip)
        require("fit: init_skip", init_skip, patterns, "a list of patterns")
        names = array_names(context, pairs)
        source = Source(
            train,
            names[0] if inputs is None else inputs,
            names[1] if targets is None else targets,
            transform or AS_STORED,
            target_transform or AS_STORED,
            augment or UNCHANGED,
            context=_plain(context),
            pairs=bool(pairs),
            bucket=bool(pairs if bucket is None else bucket),
            masking=masking,
        )
        course = Course(
            source,
            global_batch_size=_plain(global_batch_size),
            epochs=_plain(epochs),
            steps=_plain(steps),
            validate=validate,
            shuffle=shuffle,
            eval_every=_plain(eval_every),
            early_stopping=early_stopping,
            checkpoint=checkpoint or Checkpoint(),
            run_dir=run_dir,
            resume=bool(resume),
            name=name,
            trace=trace,
            init=init,
            init_skip=init_skip,
            describe=describe,
            lr_schedule=self._lr_schedule,
            clip_norm=self._clip_norm,
        )
        course.check()
        if self._assembly.built:
            raise InputError(
                "the trainer holds a model already",
                where="fit",
                found=f"one of step {self.replica.step}",
                expected="a trainer that neither fit nor load has given one",
                remedy="make a new one to train again; `run_dir` and `resume` let a run go on",
            )
        return fit(self._assembly, course)

    def load(self, checkpoint: PathLike, *, ema: bool = True) -> None:
        """Build the model and fill it from a checkpoint, which also says how samples are prepared. Collective.

        Parameters
        ----------
        checkpoint : path-like
            A folder ``step-...``, or the link ``best``, of a run with this model and this kind of optimizer.
        ema : bool
            Take the moving averages of the weights in their place, if the checkpoint has them.

        Raises
        ------
        InputError
            The checkpoint is damaged, or of another model.
        """
        require_kind("checkpoint", checkpoint, PATHS)
        require("ema", ema, is_flag(ema), "true or false")
        path = Path(checkpoint)
        manifest = agree(self.comm, lambda: checkpoints.read_manifest(path))
        input_shape: Any = manifest["input_shape"]
        recipe = manifest["progress"].recipe
        self._loaded_average = bool(ema) and recipe.ema is not None
        self._assembly.plan(input_shape, _EVALUATED)
        self._assembly.build(input_shape)
        checkpoints.load(path, self.replica, averaged=self._loaded_average)
        self._assembly.source = Source(
            "",
            recipe.inputs,
            recipe.targets,
            recipe.transform,
            recipe.target_transform,
            recipe.augment,
            context=recipe.context,
            pairs=recipe.pairs,
            bucket=recipe.bucket,
            masking=recipe.masking,
        )

    def evaluate(self, data: PathLike, *, batch_size: int = _EVALUATED) -> Metrics:
        """Return the metrics of a dataset, prepared like the training data. Collective.

        Parameters
        ----------
        data : path-like
        batch_size : int
            Samples of a batch over all ranks.
        """
        assembly, shape = self._assembly, self.replica.input_shape
        require_kind("data", data, PATHS)
        require("batch_size", batch_size, is_integer(batch_size, 1), "an integer above 0")
        source, num_ranks = assembly.source.at(data), self.grid.shape["dp"]
        agree(self.comm, lambda: source.check(assembly.model, self.loss, num_ranks, shape))
        loader = assembly.loader(data, batch_size)
        with loader.dataset:
            assembly.rehearse(loader, rehearse_evaluation)
            meter = Meter.of(self.loss, self.replica.output_shape, source.unit)
            return Evaluator(self.replica, self.loss, loader, self.comm, meter)()

    def predict(self, inputs: np.ndarray, *, batch_size: int = _EVALUATED) -> np.ndarray:
        """Return the model's outputs for samples as they are stored, in the targets' own units.

        Collective on a pipeline, whose ranks all give the same samples and get all outputs; local without one.

        Parameters
        ----------
        inputs : array, shape (n, ...)
            Any number type; transformed like the training data, and cropped in the middle where those are cropped.
            Tokens, integers, are taken as they are.
        batch_size : int
            Samples of a forward pass.

        Returns
        -------
        array, shape (n, ...)
            Raw outputs: logits of a classification, values of a regression.
        """
        source, replica, tokens = self._assembly.source, self.replica, self._assembly.model.reads_tokens
        require("batch_size", batch_size, is_integer(batch_size, 1), "an integer above 0")
        numeric = isinstance(inputs, np.ndarray) and inputs.dtype.kind in "iufb"
        require("inputs", type(inputs).__name__ if not numeric else "", numeric, "an array of real numbers")
        dtype = memory_dtype(inputs.dtype)
        with amended("inputs, prepared like the training data: "):
            stored = source.transform, source.augment, inputs.shape[1:], dtype
            preparation = TokenPreparation(*stored) if tokens else Preparation(*stored, batch_size)
        shape = preparation.output_shape
        if shape != replica.input_shape:
            raise InputError("samples of another shape", where="inputs", found=shape, expected=replica.input_shape)
        result = np.empty((len(inputs), *replica.output_shape), replica.dtype)
        for start in range(0, len(inputs), batch_size):
            raw = np.ascontiguousarray(inputs[start : start + batch_size], dtype)
            x = np.empty((len(raw), *shape), TOKEN if tokens else replica.dtype)
            preparation.apply(raw, x)
            with replica.averaged():
                result[start : start + batch_size] = replica.predict(x, np.arange(start, start + len(raw)))
        if self.loss.task == "regression":
            source.target_transform.inverse(result)
        return result

    def export(self, path: PathLike) -> None:
        """Write the weights to a .safetensors file, as ``state_dict`` of the twin in PyTorch names them. Collective.

        Parameters
        ----------
        path : path-like
            Written whole or not at all.

        Raises
        ------
        InputError
            The file cannot be written there, or the model has no twin in PyTorch.
        StorageError
            The disk is full.
        """
        export(Path(path), self.replica, self.grid, averaged=self.averaged)

    def close(self) -> None:
        """Give back what the trainer holds of the MPI library, and the model; nobody may use it any more. Collective.

        Only programs that make very many trainers need it.
        """
        self._assembly.free()


def _plain(value: Any) -> Any:
    """Return Python's number for NumPy's, which JSON does not know."""
    return value.item() if isinstance(value, np.generic) else value
