"""One rank's share of a global batch, and how it is made of stored samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from hpdl_mpi.base.errors import BadSample, InputError, amended
from hpdl_mpi.base.memory import aligned
from hpdl_mpi.data.augment import Augment
from hpdl_mpi.data.mixing import EXTRA, Mixing
from hpdl_mpi.data.prepare import Preparation
from hpdl_mpi.data.prepare_tokens import TOKEN, TokenPreparation
from hpdl_mpi.data.samples import Samples
from hpdl_mpi.data.transform import Shape, Transform
from hpdl_mpi.data.windows import Windows
from hpdl_mpi.kernels.mixup import MIXED

Inputs = Any
"""What a model reads: an array, or a tuple of arrays."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's share of a global batch. The arrays are borrowed until the next step of the iterator.

    Attributes
    ----------
    inputs : float or int64 (n, *input_shape), a tuple of two int64, or None
        Augmented, transformed, channels last, C-contiguous; or tokens as they are stored, int64. Of pairs the source,
        (n, S), and what the decoder reads, (n, T). None if the loader leaves them out.
    targets : int64 (n,) or (n, T), MIXED (n,) or float (n, k), or None
        Class numbers, two of them where samples are mixed, or one for each token, -1 where it does not count; or
        values after the target transform. None if the loader leaves them out.
    sample_ids : int64 (n,)
        Of the dataset; n may be 0.
    global_size : int
        Samples of the global batch, all ranks together.
    offset : int
        Samples of the epoch before this global batch; ``offset + global_size`` resumes after it.
    input_shape : ((int,), (int,)), optional
        Of a pair in this batch, on all ranks alike; None where every batch has the loader's.
    """

    inputs: Inputs | None
    targets: np.ndarray | None
    sample_ids: np.ndarray
    global_size: int
    offset: int
    input_shape: tuple[Shape, Shape] | None = None


class Buffers:
    """Arrays for one batch, and the stored samples that it is made from; None for what is left out."""

    def __init__(self, maker: BatchMaker) -> None:
        data, rows = maker.dataset, maker.max_rows
        self.inputs = self.targets = self.mixed = self.raw_inputs = self.raw_targets = None
        if maker.reads_inputs:
            self.inputs = aligned((rows, *maker.input_shape), maker.input_dtype)
            self.raw_inputs = aligned((rows, *data.input_shape), data.input_dtype)
        if maker.reads_targets:
            self.targets = aligned((rows, *maker.target_shape), np.int64 if maker.classes else maker.dtype)
            self.raw_targets = aligned((rows, *data.target_shape), data.target_dtype)
            if maker.target_dtype == MIXED:
                self.mixed = aligned(maker.max_share, MIXED)

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(array.nbytes for array in vars(self).values() if array is not None)


def class_shape(dataset: Samples) -> Shape:
    """Return the shape of a target of class numbers in a batch: (1,) is a plain one, but in windows of one token."""
    stored = dataset.target_shape
    return () if stored == (1,) and not isinstance(dataset, Windows) else stored


class BatchMaker:
    """Reads, augments and transforms the samples of batches, in one thread. Owns no batch; see `Loader`.

    Parameters
    ----------
    dataset : Samples
    max_share : int
        Samples of a batch at most.
    transform, augment, training, target_transform, dtype, tokens, reads_inputs, reads_targets
        As `Loader` takes them.

    Attributes
    ----------
    max_share, max_rows : int
        Samples of a batch at most, and with those that they are mixed with.
    classes : bool
        Whether targets are class numbers.
    input_dtype : numpy dtype
    input_shape, target_shape, target_dtype
        As `Loader` has them.

    Raises
    ------
    InputError
        A transform or an augmentation does not fit the samples.
    """

    def __init__(
        self,
        dataset: Samples,
        max_share: int,
        *,
        transform: Transform | None,
        augment: Augment | None,
        training: bool,
        target_transform: Transform | None,
        dtype: DTypeLike,
        tokens: bool,
        reads_inputs: bool,
        reads_targets: bool,
    ) -> None:
        self.dataset, self.dtype, self.tokens = dataset, np.dtype(dtype), tokens
        self.input_dtype = TOKEN if tokens else self.dtype
        self.reads_inputs, self.reads_targets = reads_inputs, reads_targets
        augment = augment or Augment()
        self._mixing = Mixing(augment.mixup, max_share) if augment.mixup and training else None
        self.max_share, self.max_rows = max_share, max_share + (EXTRA if self._mixing else 0)
        with amended(f"{dataset.path}: "):
            stored = transform or Transform(), augment, dataset.input_shape, dataset.input_dtype
            self._preparation = TokenPreparation(*stored) if tokens else Preparation(*stored, self.max_rows)
        self.input_shape = self._preparation.output_shape
        self._target_transform = target_transform or Transform()
        self.classes = target_transform is None and dataset.target_dtype.kind in "iub"
        self.target_shape = self._check_targets()
        self.target_dtype = np.dtype((MIXED if self._mixing else np.int64) if self.classes else dtype)

    def buffers(self) -> Buffers:
        """Return new arrays for one batch."""
        return Buffers(self)

    def _check_targets(self) -> Shape:
        """Return the shape of one target in a batch."""
        stored = self.dataset.target_shape
        plain = class_shape(self.dataset)
        if self.classes and plain and not self.tokens:
            raise InputError(
                "integer targets must be one class number per sample",
                where=f"{self.dataset.path}: {self.dataset.names['targets']}",
                found=f"targets of shape {stored}",
                expected="shape () or (1,)",
            )
        if self.classes:
            return plain
        self._target_transform.output_shape(stored)
        return (int(np.prod(stored, dtype=np.int64)),)

    def fill(
        self, buffers: Buffers, global_ids: np.ndarray, first: int, last: int, offset: int, key: np.uint64 | None
    ) -> Batch:
        """Make a batch of the samples in slots `first` to `last` of a global batch; its arrays are those of `buffers`.

        Parameters
        ----------
        buffers : Buffers
        global_ids : int64 array, shape (global_size,)
        first, last, offset : int
        key : uint64, optional
            Of (seed, epoch), to draw augmentations or masks with; None to evaluate.
        """
        own, mixing = global_ids[first:last], self._mixing
        ids = own if mixing is None or key is None else mixing.choose(key, global_ids, first, last)
        inputs, raw_inputs = _first(buffers.inputs, ids.size), _first(buffers.raw_inputs, ids.size)
        targets, raw_targets = _first(buffers.targets, ids.size), _first(buffers.raw_targets, ids.size)
        self.dataset.read(ids, raw_inputs, raw_targets)
        if inputs is not None and raw_inputs is not None:
            self._preparation.apply(raw_inputs, inputs, key, ids)
            if mixing:
                mixing.mix(inputs)
        if targets is not None and raw_targets is not None:
            self._prepare_targets(ids, raw_targets, targets)
            if mixing and buffers.mixed is not None:
                mixing.mix_labels(targets, buffers.mixed)
                targets = buffers.mixed
            elif mixing:
                mixing.mix(targets)
        return Batch(_first(inputs, own.size), _first(targets, own.size), own, global_ids.size, offset)

    def _prepare_targets(self, ids: np.ndarray, raw: np.ndarray, targets: np.ndarray) -> None:
        if not self.classes:
            self._target_transform.apply(raw, targets)
            return
        labels = raw.reshape(targets.shape)
        np.copyto(targets, labels, casting="unsafe")
        if labels.dtype == np.uint64 and len(ids) and targets.min() < 0:
            _refuse_huge_label(ids, labels)


def _first(array: np.ndarray | None, count: int) -> np.ndarray | None:
    return None if array is None else array[:count]


def _refuse_huge_label(ids: np.ndarray, labels: np.ndarray) -> None:
    """Raise for the largest label, uint64 (n, ...), which is no int64: it would pass for a negative one."""
    largest = int(labels.argmax())
    raise BadSample(
        "a label is no class number",
        sample=int(ids[largest * len(ids) // labels.size]),
        where="data.targets",
        found=int(labels.flat[largest]),
        expected="at most 2^63 - 1",
        remedy="mend the labels",
    )
