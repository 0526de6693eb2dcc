"""Where samples come from and how they are prepared, and whether a model and a loss can take them."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hpdl_mpi.base.errors import InputError, amended
from hpdl_mpi.data import Augment, Dataset, Masking, Pairs, Samples, Transform, Windows, fitted
from hpdl_mpi.data.batch import class_shape
from hpdl_mpi.data.pair_batch import batch_shape
from hpdl_mpi.data.pairs import SOURCE, TARGET
from hpdl_mpi.data.prepare_tokens import IGNORED, refuse_changes
from hpdl_mpi.data.windows import TOKENS
from hpdl_mpi.nn import Layer, Loss, Shape

PathLike = str | os.PathLike[str]
PATHS = str, os.PathLike

AS_STORED = Transform()
"""The transform that changes nothing but the number type."""

UNCHANGED = Augment()
"""No augmentation."""


@dataclass(frozen=True)
class Source:
    """Samples, and what is done to them before the model sees them.

    Attributes
    ----------
    path : path-like
        A folder of shards, a glob, or one HDF5 file.
    inputs, targets : str
        Names of the arrays.
    transform, target_transform : Transform
    augment : Augment
        Of samples to learn from; others are cropped in the middle at most.
    context : int, optional
        Tokens of a window, of which the samples are made where `inputs` is a flat array of them.
    pairs : bool
        Samples are pairs of sequences of tokens, see `data.Pairs`.
    bucket : bool
        Pairs of like lengths come in one batch.
    masking : Masking, optional
        Of windows: their targets are then the tokens that it hides.
    """

    path: PathLike
    inputs: str = "x"
    targets: str = "y"
    transform: Transform = AS_STORED
    target_transform: Transform = AS_STORED
    augment: Augment = UNCHANGED
    context: int | None = None
    pairs: bool = False
    bucket: bool = False
    masking: Masking | None = None

    def open(self) -> Samples:
        """Return the dataset; reads no samples."""
        if self.context is not None:
            return Windows.open(self.path, self.inputs, context=self.context)
        if self.pairs:
            return Pairs.open(self.path, self.inputs, self.targets)
        return Dataset.open(self.path, self.inputs, self.targets)

    def at(self, path: PathLike) -> Source:
        """Return the source of other samples that are prepared alike."""
        return replace(self, path=path)

    def measured(self) -> Source:
        """Return the source with means and deviations in place of `standardize`; may read all samples."""
        with self.open() as dataset:
            return replace(
                self,
                transform=fitted(self.transform, dataset),
                target_transform=fitted(self.target_transform, dataset, "targets"),
            )

    @property
    def kind(self) -> dict[str, Any]:
        """Of what kind the samples are, by its keys in a job."""
        return {"context": self.context, "pairs": self.pairs, "bucket": self.bucket, "masking": self.masking}

    @property
    def unit(self) -> float | None:
        """What one unit of the model's outputs is in the targets' own; None where several targets differ in it."""
        std, scale = self.target_transform.std, self.target_transform.scale
        values = set(np.atleast_1d(1.0 if std is None else std).tolist())
        return values.pop() / abs(scale) if len(values) == 1 else None

    def build(self, model: Layer, loss: Loss, stored_shape: Shape) -> Shape:
        """Build a model for samples that are stored in some shape, and return that in which it sees them.

        No data are read: of what `check` finds out, it leaves out what only they tell.

        Raises
        ------
        InputError
            The transforms, the model or the loss cannot take such samples, or they are pairs, which have two shapes.
        """
        if self.pairs:
            raise InputError("pairs have no one shape", where="data.pairs", remedy="leave the shape out, and name data")
        self._refuse_transformed_classes(loss)
        self._check_tokens(model)
        with amended("data."):
            shape = self.transform.output_shape(stored_shape)
        shape = self.augment.output_shape(shape)
        with amended("model: "):
            model.build(shape)
        if loss.task == "classification":
            loss.check(model.output_shape(shape), () if self.context is None else shape, np.dtype(np.int64))
        self._check_masking(model, loss, shape)
        return shape

    def check(self, model: Layer, loss: Loss, num_ranks: int, expected: Any = None, *, key: str | None = None) -> Any:
        """Return the shape of a sample as the model sees it; build the model for it unless that shape is `expected`.

        Of pairs it is two shapes, of the longest source and target; those of other pairs may differ from it.

        The name `key` of the data stands in front of what is wrong with its files.

        Raises
        ------
        InputError
            The transforms, the model or the loss cannot take the samples, their shape is not the expected one, or there
            are fewer than ranks.
        """
        self._refuse_transformed_classes(loss)
        self._check_tokens(model)
        with amended(f"{key}: " if key else ""):
            dataset = self.open()
        with dataset:
            with amended("data." if expected is None else f"{self.path}: data."):
                shape: Any = self.transform.output_shape(dataset.input_shape)
            shape = self.augment.output_shape(shape, self.path)
            target_shape = dataset.target_shape
            if isinstance(dataset, Pairs):
                _require_ignored(loss, "targets of pairs have ends of many lengths")
                shape = batch_shape(dataset.source_lengths, dataset.target_lengths)
                target_shape = shape[1]
            elif loss.task == "regression":
                with amended("data.target_"):
                    target_shape = self.target_transform.output_shape(target_shape)
            else:
                target_shape = class_shape(dataset)
            if expected is None:
                with amended("model: "):
                    model.build(shape)
            elif shape != expected and not self.pairs:
                raise InputError("samples of another shape", where=self.path, found=shape, expected=expected)
            loss.check(model.output_shape(shape), target_shape, dataset.target_dtype)
            self._check_masking(model, loss, shape)
            if dataset.num_samples < num_ranks:
                raise InputError(
                    "fewer samples than ranks that share them",
                    where=self.path,
                    found=f"{dataset.num_samples} samples",
                    expected=f"at least {num_ranks}, one per data-parallel rank",
                    remedy="start fewer ranks",
                )
            return shape

    def _refuse_transformed_classes(self, loss: Loss) -> None:
        if loss.task == "classification" and self.target_transform != AS_STORED:
            raise InputError("class numbers are not transformed", where="data.target_transform", remedy="leave it out")

    def _check_tokens(self, model: Layer) -> None:
        """Raise if a model that reads tokens would get something else, or one that reads values would get tokens."""
        if model.reads_tokens:
            refuse_changes(self.transform, self.augment)
        elif self.context is not None or self.pairs:
            raise InputError(
                "the model reads no tokens",
                where="data.pairs" if self.pairs else "data.context",
                expected="a model that begins with an embedding of tokens",
            )

    def _check_masking(self, model: Layer, loss: Loss, shape: Shape) -> None:
        """Raise if the loss would learn from tokens that are not masked, or the model lacks some of the vocabulary."""
        if self.masking is not None:
            _require_ignored(loss, "data.masking leaves most tokens without a target")
            self.masking.require_outputs(model.output_shape(shape)[-1])


def _require_ignored(loss: Loss, why: str) -> None:
    """Raise if a loss would take for a class what stands where a target has ended."""
    ignored = getattr(loss, "ignore_index", None)
    if ignored != IGNORED:
        raise InputError(
            why,
            where="training.loss.ignore_index",
            found=ignored,
            expected=IGNORED,
            remedy=f'write loss = {{ name = "cross_entropy", ignore_index = {IGNORED} }}',
        )


def array_names(context: Any, pairs: Any) -> tuple[str, str]:
    """Return the names that arrays of inputs and targets have by default: those that the converter gives them."""
    if context is not None:
        return TOKENS, TOKENS
    return (SOURCE, TARGET) if pairs is True else ("x", "y")
