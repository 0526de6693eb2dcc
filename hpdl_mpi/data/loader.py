"""Batches for one rank, read ahead by a thread into buffers that are used again and again."""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from hpdl_mpi.base.errors import BadSample, InputError, require
from hpdl_mpi.base.memory import aligned
from hpdl_mpi.base.shares import share
from hpdl_mpi.data.dataset import Dataset
from hpdl_mpi.data.sampler import SHUFFLES, Shuffle
from hpdl_mpi.data.transform import Shape, Transform


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's share of a global batch. The arrays are borrowed until the next step of the iterator.

    Attributes
    ----------
    inputs : float (n, *input_shape), or None
        Transformed, channels last, C-contiguous; None if the loader leaves them out.
    targets : int64 (n,) or float (n, k), or None
        Class numbers, or values after the target transform; None if the loader leaves them out.
    sample_ids : int64 (n,)
        Of the dataset; n may be 0.
    global_size : int
        Samples of the global batch, all ranks together.
    offset : int
        Samples of the epoch before this global batch; ``offset + global_size`` resumes after it.
    """

    inputs: np.ndarray | None
    targets: np.ndarray | None
    sample_ids: np.ndarray
    global_size: int
    offset: int


class _Buffers:
    """Arrays for one batch, and the stored samples that it is made from; None for what is left out."""

    def __init__(self, loader: Loader) -> None:
        data, rows = loader.dataset, loader.max_share
        self.inputs = self.targets = self.raw_inputs = self.raw_targets = None
        if loader.reads_inputs:
            self.inputs = aligned((rows, *loader.input_shape), loader.dtype)
            self.raw_inputs = aligned((rows, *data.input_shape), data.input_dtype)
        if loader.reads_targets:
            self.targets = aligned((rows, *loader.target_shape), loader.target_dtype)
            self.raw_targets = aligned((rows, *data.target_shape), data.target_dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(array.nbytes for array in vars(self).values() if array is not None)


class Loader:
    """Iterates over the epochs of a dataset, one rank's share of each global batch at a time. Local to the rank.

    Parameters
    ----------
    dataset : Dataset
    global_batch_size : int
        Samples of a batch over all ranks; the last batch of an epoch may be smaller.
    seed : int
        Of the order of samples.
    shuffle : {"block", "global", "none"}
        See `sampler.epoch_order`.
    dp_rank, dp_size : int
        Which share of each batch, of how many.
    transform : Transform, optional
        Of the inputs.
    target_transform : Transform, optional
        Of the targets, which are then floats. Without it integer targets are class numbers.
    dtype : dtype
        float32 or float64, of inputs and of targets that are not classes.
    depth : int
        Batches to read ahead.
    reads_inputs, reads_targets : bool
        Whether batches have them; a rank amid a pipeline needs neither.

    Attributes
    ----------
    input_shape, target_shape : tuple of int
        Of one sample in a batch: transformed inputs; () for classes, (k,) for values.
    target_dtype : numpy dtype
        int64 for classes, else `dtype`.

    Raises
    ------
    InputError
        Sizes below 1, a seed below 0, an unknown kind of shuffling, fewer samples than ranks, or a transform that does
        not fit the samples.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        global_batch_size: int,
        seed: int = 0,
        shuffle: Shuffle = "block",
        dp_rank: int = 0,
        dp_size: int = 1,
        transform: Transform | None = None,
        target_transform: Transform | None = None,
        dtype: DTypeLike = np.float32,
        depth: int = 2,
        reads_inputs: bool = True,
        reads_targets: bool = True,
    ) -> None:
        require("global_batch_size", global_batch_size, _is_int(global_batch_size, 1), "an integer above 0")
        require("seed", seed, _is_int(seed, 0), "an integer of at least 0")
        require("shuffle", shuffle, shuffle in SHUFFLES, " or ".join(SHUFFLES))
        if dataset.num_samples < dp_size:
            raise InputError(
                "fewer samples than ranks that share them",
                where=dataset.path,
                found=f"{dataset.num_samples} samples for {dp_size} data-parallel ranks",
                remedy="start fewer ranks, or use more of the ranks for the pipeline (parallel.pp)",
            )
        self.dataset = dataset
        self.global_batch_size = global_batch_size
        self.seed, self.shuffle = seed, shuffle
        self.dp_rank, self.dp_size = dp_rank, dp_size
        self.transform = transform or Transform()
        self.target_transform = target_transform or Transform()
        self.reads_inputs, self.reads_targets = reads_inputs, reads_targets
        self.dtype = np.dtype(dtype)
        self.input_shape = self.transform.output_shape(dataset.input_shape)
        self.classes = target_transform is None and dataset.target_dtype.kind in "iub"
        self.target_dtype = np.dtype(np.int64) if self.classes else self.dtype
        self.target_shape = self._check_targets()
        self.max_share = -(-min(global_batch_size, dataset.num_samples) // dp_size)
        self._buffers = [_Buffers(self) for _ in range(depth + 1)]
        self._in_use = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffers.nbytes for buffers in self._buffers)

    def _check_targets(self) -> Shape:
        """Return the shape of one target in a batch."""
        stored = self.dataset.target_shape
        if self.classes and stored not in ((), (1,)):
            raise InputError(
                "integer targets must be one class number per sample",
                where=f"{self.dataset.path}: {self.dataset.names['targets']}",
                found=f"targets of shape {stored}",
                expected="shape () or (1,)",
            )
        if self.classes:
            return ()
        self.target_transform.output_shape(stored)
        return (int(np.prod(stored, dtype=np.int64)),)

    def epoch(self, epoch: int, offset: int = 0, limit: int | None = None) -> Generator[Batch, None, None]:
        """Yield this rank's share of each global batch of an epoch.

        A thread reads ahead while the iterator lives. Leave it early with `close` (a `for` loop that breaks, then
        drops the iterator, does so); one iterator of a loader may live at a time.

        Parameters
        ----------
        epoch : int
            Counts from 0; with the seed it decides the order.
        offset : int
            Samples of the epoch that are done already: the state that resumes in mid-epoch.
        limit : int, optional
            Samples to yield at most, over all ranks.

        Raises
        ------
        InputError
            A file is damaged; raised where the batch would have come.
        """
        if not self._in_use.acquire(blocking=False):
            raise RuntimeError("another iterator of this loader is alive, and they would share buffers: close it first")
        end = self.dataset.num_samples if limit is None else min(self.dataset.num_samples, offset + limit)
        starts = range(offset, end, self.global_batch_size)
        free: queue.SimpleQueue[_Buffers | None] = queue.SimpleQueue()
        ready: queue.SimpleQueue[Batch | BaseException] = queue.SimpleQueue()
        for buffers in self._buffers:
            free.put(buffers)
        stopped = threading.Event()
        reader = threading.Thread(
            target=self._read_ahead, args=(epoch, starts, end, free, ready, stopped), name="hpdl-loader", daemon=True
        )

        def stop() -> None:
            stopped.set()
            free.put(None)
            reader.join()

        reader.start()
        atexit.register(stop)  # an iterator that outlives the program would wait for a thread that no longer runs
        try:
            for index in range(len(starts)):
                batch = ready.get()
                if isinstance(batch, BaseException):
                    raise batch
                yield batch
                free.put(self._buffers[index % len(self._buffers)])  # both queues keep the order of batches
        finally:
            stop()
            atexit.unregister(stop)
            self._in_use.release()

    def _read_ahead(
        self,
        epoch: int,
        starts: range,
        end: int,
        free: queue.SimpleQueue[_Buffers | None],
        ready: queue.SimpleQueue[Batch | BaseException],
        stopped: threading.Event,
    ) -> None:
        """Fill free buffers with the batches that begin at `starts`; hand over whatever goes wrong."""
        try:
            order = self.dataset.order(self.seed, epoch, self.shuffle)
            for start in starts:
                buffers = free.get()
                if buffers is None or stopped.is_set():
                    return
                ready.put(self._fill(buffers, order[start : min(start + self.global_batch_size, end)], start))
        except BaseException as error:  # noqa: BLE001 - raised again where the batch would have come
            ready.put(error)

    def _fill(self, buffers: _Buffers, global_ids: np.ndarray, offset: int) -> Batch:
        first, last = share(global_ids.size, self.dp_rank, self.dp_size)
        ids, n = global_ids[first:last], last - first
        inputs, targets = _first(buffers.inputs, n), _first(buffers.targets, n)
        raw_inputs, raw_targets = _first(buffers.raw_inputs, n), _first(buffers.raw_targets, n)
        self.dataset.read(ids, raw_inputs, raw_targets)
        if inputs is not None and raw_inputs is not None:
            self.transform.apply(raw_inputs, inputs)
        if targets is not None and raw_targets is not None:
            self._prepare_targets(ids, raw_targets, targets)
        return Batch(inputs, targets, ids, global_ids.size, offset)

    def _prepare_targets(self, ids: np.ndarray, raw: np.ndarray, targets: np.ndarray) -> None:
        if not self.classes:
            self.target_transform.apply(raw, targets)
            return
        labels = raw.reshape(len(ids))
        np.copyto(targets, labels, casting="unsafe")
        if labels.dtype == np.uint64 and len(ids) and targets.min() < 0:
            self._refuse_huge_label(ids, labels)

    @staticmethod
    def _refuse_huge_label(ids: np.ndarray, labels: np.ndarray) -> None:
        """Raise for the largest label, uint64 (n,), which is no int64: it would pass for a negative one."""
        largest = int(labels.argmax())
        raise BadSample(
            "a label is no class number",
            sample=int(ids[largest]),
            where="data.targets",
            found=int(labels[largest]),
            expected="at most 2^63 - 1",
            remedy="mend the labels",
        )


def _first(array: np.ndarray | None, count: int) -> np.ndarray | None:
    return None if array is None else array[:count]


def _is_int(value: object, least: int) -> bool:
    """Tell whether a value is an integer, Python's or NumPy's, and not below `least`."""
    return isinstance(value, int | np.integer) and bool(value >= least)
