"""Losses: sums over samples with their weights, and the gradient in the same pass."""

from __future__ import annotations

import abc
import math
from typing import Literal, NamedTuple

import numpy as np

from hpdl_mpi.base.errors import BadSample, InputError, is_integer, is_number, require
from hpdl_mpi.kernels import regression, softmax
from hpdl_mpi.kernels.mixup import MIXED
from hpdl_mpi.kernels.recording import replayed
from hpdl_mpi.nn.context import Context
from hpdl_mpi.nn.layer import Shape

_NO_CLASS = -(2**63)
"""What no target is."""


class LossSums(NamedTuple):
    """Sums over the samples of a micro-batch, on this rank; sums over micro-batches and ranks add up."""

    loss: float
    weight: float
    """The number of samples (or tokens) that count."""
    score: float
    """Classification: how many are right. Regression: the sum over samples of the mean squared error."""
    top5: float = 0.0
    """Classification: how many have their class among the five likeliest ones."""


class Loss(abc.ABC):
    """A loss returns sums and weights, so that uneven shares of a batch add up rightly on any number of ranks."""

    task: Literal["classification", "regression"]
    """What `LossSums.score` counts."""

    in_place: bool = False
    """Whether the gradient may take the place of outputs that nobody else holds: there are many of a vocabulary."""

    def plain(self) -> Loss:
        """Return what evaluations report: the loss without what serves training alone."""
        return self

    @abc.abstractmethod
    def check(self, output_shape: Shape, target_shape: Shape, target_dtype: np.dtype) -> None:
        """Raise an `InputError` if a model's outputs cannot be compared with such targets (shapes of one sample)."""

    @abc.abstractmethod
    def _evaluate(
        self, outputs: np.ndarray, targets: np.ndarray, scale: float, doutputs: np.ndarray, ctx: Context
    ) -> LossSums:
        """Return the sums; write `scale` times the gradient of the loss sum unless `doutputs` is empty.

        A `BadSample` names the place in the batch.
        """

    def __call__(
        self, outputs: np.ndarray, targets: np.ndarray, scale: float, ctx: Context
    ) -> tuple[LossSums, np.ndarray | None]:
        """Compare a micro-batch with its targets.

        Parameters
        ----------
        outputs : array, shape (n, ...)
            Not to be read any more by a caller who alone holds it, if the loss works `in_place`.
        targets : array, shape (n, ...)
        scale : float
            Multiplies the gradient: 1 / the nominal global batch size.
        ctx : Context

        Returns
        -------
        sums : LossSums
        doutputs : array or None
            Like `outputs`, from the pool, held for the caller; None unless backward follows.
        """
        assert len(targets) == len(outputs), "every sample has a target"
        doutputs = None
        if ctx.batch.saving and self.in_place and ctx.holds_alone(outputs):
            ctx.retain(outputs)
            doutputs = outputs
        elif ctx.batch.saving:
            doutputs = ctx.take(outputs.shape, outputs.dtype)
        unwritten = outputs[:0] if doutputs is None else doutputs
        return replayed(self._compare, outputs, targets, scale, unwritten, ctx), doutputs

    def _compare(
        self, outputs: np.ndarray, targets: np.ndarray, scale: float, doutputs: np.ndarray, ctx: Context
    ) -> LossSums:
        """Evaluate; an error is to name a sample by its number in the dataset."""
        try:
            return self._evaluate(outputs, targets, scale, doutputs, ctx)
        except BadSample as error:
            error.sample = int(ctx.batch.sample_ids[error.sample])
            raise


class CrossEntropy(Loss):
    """Cross-entropy of the softmax of the last dimension with class numbers 0..k-1, fused with the softmax.

    Of sequences every token is a sample of its own: means are over tokens.

    Parameters
    ----------
    label_smoothing : float
        Part of the target that is spread evenly over all classes while training; evaluations take the target as it
        is, so that runs with different smoothing compare.
    ignore_index : int, optional
        A target that does not count, such as -1 or -100 for padding.
    """

    task = "classification"
    in_place = True

    def __init__(self, label_smoothing: float = 0.0, ignore_index: int | None = None) -> None:
        possible = is_number(label_smoothing) and 0 <= label_smoothing < 1
        require("label_smoothing", label_smoothing, possible, "0 to below 1")
        require("ignore_index", ignore_index, ignore_index is None or is_integer(ignore_index), "an integer, or none")
        self.label_smoothing, self.ignore_index = label_smoothing, ignore_index

    def plain(self) -> Loss:
        return CrossEntropy(ignore_index=self.ignore_index) if self.label_smoothing else self

    def check(self, output_shape: Shape, target_shape: Shape, target_dtype: np.dtype) -> None:
        if target_dtype.kind not in "iub":
            raise _mismatch("cross_entropy takes class numbers", target_dtype, "an integer or bool dtype")
        if target_shape != output_shape[:-1]:
            raise _mismatch("targets do not fit the model's outputs", target_shape, output_shape[:-1])

    def _evaluate(
        self, outputs: np.ndarray, targets: np.ndarray, scale: float, doutputs: np.ndarray, ctx: Context
    ) -> LossSums:
        if targets.dtype == MIXED:
            return self._evaluate_mixed(outputs, targets, scale, doutputs)
        classes = outputs.shape[-1]
        flat = targets.reshape(-1)
        if flat.dtype == bool:
            flat = flat.view(np.uint8)  # the kernel counts with them
        ignored = _NO_CLASS if self.ignore_index is None else self.ignore_index
        blocks = ctx.take((-(-flat.size // softmax.LOSS_ROWS), softmax.LOSS_SUMS), np.float64)
        softmax.cross_entropy(
            outputs.reshape(-1, classes),
            flat,
            ignored,
            self.label_smoothing,
            scale,
            doutputs.reshape(-1, classes),
            blocks,
        )
        loss, counted, correct, near = (math.fsum(column) for column in blocks[:, :4].T.tolist())
        bad = int(min((place for place in blocks[:, 4].tolist() if place >= 0), default=-1))
        ctx.release(blocks)
        if bad >= 0:
            raise BadSample(
                "a label is outside the classes",
                sample=bad * len(targets) // flat.size,
                where="data.targets",
                found=int(flat[bad]),
                expected=f"0 to {classes - 1}, since the model has {classes} outputs",
                remedy="mend the labels, give the model an output for each class, or name one that does not count"
                " (training.loss.ignore_index)",
            )
        return LossSums(loss, counted, correct, near)

    def _evaluate_mixed(self, outputs: np.ndarray, targets: np.ndarray, scale: float, doutputs: np.ndarray) -> LossSums:
        """Compare with targets of two classes each, MIXED (n,)."""
        classes = outputs.shape[-1]
        loss, correct, near, bad = softmax.mixed_cross_entropy(outputs, targets, self.label_smoothing, scale, doutputs)
        if bad >= 0:
            label, other, _ = targets[bad].tolist()
            own = not 0 <= label < classes
            raise BadSample(
                "a label is outside the classes"
                if own
                else "is mixed with a sample whose label is outside the classes",
                sample=bad,
                where="data.targets",
                found=label if own else other,
                expected=f"0 to {classes - 1}, since the model has {classes} outputs",
                remedy="mend the labels, or give the model an output for each class",
            )
        return LossSums(loss, float(len(targets)), correct, near)


class _Regression(Loss):
    task = "regression"

    def check(self, output_shape: Shape, target_shape: Shape, target_dtype: np.dtype) -> None:
        if _without_last_one(target_shape) != _without_last_one(output_shape):
            raise _mismatch("targets do not fit the model's outputs", target_shape, output_shape)

    @abc.abstractmethod
    def _sums(
        self, outputs: np.ndarray, targets: np.ndarray, scale: float, doutputs: np.ndarray
    ) -> tuple[float, float]:
        """Return the sums of losses and of squared errors over elements; all arrays are flat."""

    def _evaluate(
        self, outputs: np.ndarray, targets: np.ndarray, scale: float, doutputs: np.ndarray, ctx: Context
    ) -> LossSums:
        samples = len(outputs)
        per_sample = max(1, outputs.size // max(1, samples))
        loss, squares = self._sums(outputs.reshape(-1), targets.reshape(-1), scale / per_sample, doutputs.reshape(-1))
        return LossSums(loss / per_sample, float(samples), squares / per_sample)


class MeanSquaredError(_Regression):
    """The mean over a sample's outputs of (output - target)^2."""

    def _sums(
        self, outputs: np.ndarray, targets: np.ndarray, scale: float, doutputs: np.ndarray
    ) -> tuple[float, float]:
        squares = regression.squared_error(outputs, targets, scale, doutputs)
        return squares, squares


class Huber(_Regression):
    """Squared near zero, linear beyond `delta`: large errors pull less (Huber, 1964)."""

    def __init__(self, delta: float = 1.0) -> None:
        require("delta", delta, is_number(delta) and delta > 0, "a number above 0")
        self.delta = delta

    def _sums(
        self, outputs: np.ndarray, targets: np.ndarray, scale: float, doutputs: np.ndarray
    ) -> tuple[float, float]:
        return regression.huber(outputs, targets, self.delta, scale, doutputs)


def _without_last_one(shape: Shape) -> Shape:
    """Return a shape without a last dimension of 1: a column of values is as good as the values."""
    return shape[:-1] if shape[-1:] == (1,) else shape


def _mismatch(what: str, found: object, expected: object) -> InputError:
    return InputError(what, where="data.targets", found=found, expected=expected)
