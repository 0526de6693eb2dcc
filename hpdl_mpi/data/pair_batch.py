"""One rank's share of a global batch of pairs: all ranks cut and pad sequences to the longest of the whole batch."""

from __future__ import annotations

import math

import numpy as np

from hpdl_mpi.base.memory import aligned, check_memory
from hpdl_mpi.data.batch import Batch
from hpdl_mpi.data.pairs import Pairs
from hpdl_mpi.data.prepare_tokens import IGNORED, TOKEN
from hpdl_mpi.data.transform import Shape

PAD = 0
"""Behind a source, and behind what a decoder has written."""

MULTIPLE = 4
"""Lengths of a batch are multiples of it, so that kernels and buffers see few shapes."""

_NARROWER = "convert the pairs again, so that no row is wider than the longest, or make batches smaller"


class PairBuffers:
    """Arrays for one batch of any length, and the stored pairs that it is made from; empty for what is left out."""

    def __init__(self, maker: PairMaker) -> None:
        data, rows = maker.dataset, maker.max_share
        (source,), (target,) = maker.input_shape
        inputs, targets = rows if maker.reads_inputs else 0, rows if maker.reads_targets else 0
        self.source, self.target_in = aligned(inputs * source, TOKEN), aligned(inputs * target, TOKEN)
        self.targets = aligned(targets * target, TOKEN)
        raw_source, raw_target = (inputs, *data.input_shape), (max(inputs, targets), *data.target_shape)
        # A file may claim rows far wider than any sequence in it.
        nbytes = math.prod(raw_source) * data.input_dtype.itemsize + math.prod(raw_target) * data.target_dtype.itemsize
        check_memory(
            nbytes, f"pairs of {data.path}, which are {raw_source[1]} and {raw_target[1]} wide", remedy=_NARROWER
        )
        self.raw_source = aligned(raw_source, data.input_dtype)
        self.raw_target = aligned(raw_target, data.target_dtype)
        self.lengths = aligned((2, rows), np.int64)
        self.beyond = aligned(rows * max(source, target), np.bool_)

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(array.nbytes for array in vars(self).values())


class PairMaker:
    """Reads and pads the pairs of batches, in one thread. Owns no batch; see `Loader`.

    Of a target ``bos a b eos``, the decoder reads ``bos a b`` and is to write ``a b eos``.

    Parameters
    ----------
    dataset : Pairs
    max_share : int
        Samples of a batch at most.
    reads_inputs, reads_targets : bool

    Attributes
    ----------
    input_shape : ((int,), (int,))
        Of the longest source and target.
    target_shape : (int,)
    target_dtype : numpy dtype
    """

    def __init__(self, dataset: Pairs, max_share: int, *, reads_inputs: bool, reads_targets: bool) -> None:
        self.dataset, self.max_share = dataset, max_share
        self.reads_inputs, self.reads_targets = reads_inputs, reads_targets
        self.input_shape = batch_shape(dataset.source_lengths, dataset.target_lengths)
        self.target_shape: Shape = self.input_shape[1]
        self.target_dtype = TOKEN
        self._positions = np.arange(max(self.input_shape)[0])

    def buffers(self) -> PairBuffers:
        """Return new arrays for one batch."""
        return PairBuffers(self)

    def fill(
        self, buffers: PairBuffers, global_ids: np.ndarray, first: int, last: int, offset: int, key: np.uint64 | None
    ) -> Batch:
        """Make a batch of the pairs in slots `first` to `last` of a global batch; see `BatchMaker.fill`."""
        data, ids = self.dataset, global_ids[first:last]
        shape = batch_shape(data.source_lengths[global_ids], data.target_lengths[global_ids])
        (source_length,), (target_length,) = shape
        n = ids.size
        lengths = buffers.lengths[:, :n]
        np.take(data.source_lengths, ids, out=lengths[0], mode="clip")
        np.take(data.target_lengths, ids, out=lengths[1], mode="clip")
        lengths[1] -= 1
        raw_source = buffers.raw_source[:n] if self.reads_inputs else None
        raw_target = buffers.raw_target[:n] if self.reads_inputs or self.reads_targets else None
        data.read(ids, raw_source, raw_target)
        inputs = targets = None
        if raw_source is not None and raw_target is not None:
            inputs = (
                self._padded(raw_source, lengths[0], source_length, PAD, buffers.source, buffers.beyond),
                self._padded(raw_target, lengths[1], target_length, PAD, buffers.target_in, buffers.beyond),
            )
        if self.reads_targets and raw_target is not None:
            following = raw_target[:, 1:]
            targets = self._padded(following, lengths[1], target_length, IGNORED, buffers.targets, buffers.beyond)
        return Batch(inputs, targets, ids, global_ids.size, offset, shape)

    def _padded(
        self, raw: np.ndarray, lengths: np.ndarray, width: int, padding: int, out: np.ndarray, beyond: np.ndarray
    ) -> np.ndarray:
        """Return the first `lengths` tokens of each row, (n, width), in `out`; `beyond` is scratch."""
        n, stored = len(raw), min(width, raw.shape[1])
        tokens = out[: n * width].reshape(n, width)
        tokens[:, :stored] = raw[:, :stored]
        outside = beyond[: n * width].reshape(n, width)
        np.greater_equal(self._positions[:width], lengths[:, np.newaxis], out=outside)
        np.putmask(tokens, outside, padding)
        return tokens


def batch_shape(source_lengths: np.ndarray, target_lengths: np.ndarray) -> tuple[Shape, Shape]:
    """Return the shapes of a sample in a batch of pairs of these lengths: of the source, and of the shifted target."""
    longest = int(source_lengths.max()), int(target_lengths.max()) - 1
    source, target = (math.ceil(length / MULTIPLE) * MULTIPLE for length in longest)
    return (source,), (target,)
