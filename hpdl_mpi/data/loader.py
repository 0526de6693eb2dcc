"""Batches for one rank, read ahead by a thread into buffers that are used again and again."""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Generator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from hpdl_mpi.base.errors import InputError, is_integer, is_one_of, require
from hpdl_mpi.base.shares import share
from hpdl_mpi.data.augment import Augment
from hpdl_mpi.data.batch import Batch, BatchMaker
from hpdl_mpi.data.masked_batch import MaskedMaker
from hpdl_mpi.data.masking import Masking
from hpdl_mpi.data.pair_batch import PairMaker
from hpdl_mpi.data.pairs import Pairs
from hpdl_mpi.data.prepare_tokens import refuse_changes
from hpdl_mpi.data.sampler import SHUFFLES, Shuffle, bucketed
from hpdl_mpi.data.samples import Samples
from hpdl_mpi.data.transform import Transform
from hpdl_mpi.kernels.random import derive_key


class Loader:
    """Iterates over the epochs of a dataset, one rank's share of each global batch at a time. Local to the rank.

    Parameters
    ----------
    dataset : Samples
    global_batch_size : int
        Samples of a batch over all ranks; the last batch of an epoch may be smaller.
    seed : int
        Of the order of samples, of their augmentation and of what is masked.
    shuffle : {"block", "global", "none"}
        See `sampler.epoch_order`.
    dp_rank, dp_size : int
        Which share of each batch, of how many.
    transform : Transform, optional
        Of the inputs.
    augment : Augment, optional
        Of the inputs, and by mixup of the targets too.
    training : bool
        Whether samples are augmented, and tokens masked anew in every epoch; if not, samples are cropped in the middle
        at most, and the same tokens masked always.
    target_transform : Transform, optional
        Of the targets, which are then floats. Without it integer targets are class numbers.
    dtype : dtype
        float32 or float64, of inputs that are not tokens and of targets that are not classes.
    tokens : bool
        Whether the model reads tokens: inputs are then int64, as they are stored, and integer targets may be one class
        number for each of them. Pairs always are.
    bucket : bool
        Whether samples of like lengths come together, see `sampler.bucketed`: for pairs alone.
    masking : Masking, optional
        Inputs are those of the dataset with some tokens hidden, and targets these tokens, -1 elsewhere. Not for pairs.
    depth : int
        Batches to read ahead.
    reads_inputs, reads_targets : bool
        Whether batches have them; a rank amid a pipeline needs neither.

    Attributes
    ----------
    input_shape, target_shape : tuple of int, or of pairs two such
        Of one sample in a batch: transformed inputs; () for classes, (T,) for those of tokens, (k,) for values. Pairs
        are at most as long; a batch has its own `Batch.input_shape`.
    target_dtype : numpy dtype
        int64 for classes, MIXED for those of mixed samples, else `dtype`.

    Raises
    ------
    InputError
        Sizes below 1, a seed below 0, an unknown kind of shuffling, fewer samples than ranks, or a transform or an
        augmentation that does not fit the samples.
    """

    def __init__(
        self,
        dataset: Samples,
        *,
        global_batch_size: int,
        seed: int = 0,
        shuffle: Shuffle = "block",
        dp_rank: int = 0,
        dp_size: int = 1,
        transform: Transform | None = None,
        augment: Augment | None = None,
        training: bool = True,
        target_transform: Transform | None = None,
        dtype: DTypeLike = np.float32,
        tokens: bool = False,
        bucket: bool = False,
        masking: Masking | None = None,
        depth: int = 2,
        reads_inputs: bool = True,
        reads_targets: bool = True,
    ) -> None:
        possible = is_integer(global_batch_size, 1)
        require("training.global_batch_size", global_batch_size, possible, "an integer above 0")
        require("seed", seed, is_integer(seed, 0), "an integer of at least 0")
        require("shuffle", shuffle, is_one_of(shuffle, SHUFFLES), " or ".join(SHUFFLES))
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
        self.training = training
        mixes = training and augment is not None and augment.mixup is not None
        enough = not mixes or global_batch_size > 1
        require("training.global_batch_size", global_batch_size, enough, "2 or more samples to mix")
        max_share = -(-min(global_batch_size, dataset.num_samples) // dp_size)
        self._maker: BatchMaker | PairMaker | MaskedMaker
        reads = {"reads_inputs": reads_inputs, "reads_targets": reads_targets}
        are_pairs = isinstance(dataset, Pairs)
        require("data.bucket", bucket, are_pairs or not bucket, "false: these samples have one length")
        if are_pairs or masking is not None:
            refuse_changes(transform or Transform(), augment or Augment())
            require("data.target_transform", target_transform, target_transform is None, "none: targets are tokens")
        if isinstance(dataset, Pairs):
            require("data.masking", masking, masking is None, "none: tokens of pairs are not masked")
            self._lengths = dataset.source_lengths, dataset.target_lengths
            self._maker = PairMaker(dataset, max_share, **reads)
        elif masking is not None:
            self._maker = MaskedMaker(dataset, max_share, masking, **reads)
        else:
            self._maker = BatchMaker(
                dataset,
                max_share,
                transform=transform,
                augment=augment,
                training=training,
                target_transform=target_transform,
                dtype=dtype,
                tokens=tokens,
                **reads,
            )
        self.bucket = bucket
        self.input_shape: Any = self._maker.input_shape
        self.target_shape = self._maker.target_shape
        self.target_dtype = self._maker.target_dtype
        self._buffers = [self._maker.buffers() for _ in range(depth + 1)]
        self._in_use = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffers.nbytes for buffers in self._buffers)

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
        free: queue.SimpleQueue[Any] = queue.SimpleQueue()
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

    def _order(self, epoch: int) -> np.ndarray:
        """Return the ids of all samples in the order of an epoch."""
        order = self.dataset.order(self.seed, epoch, self.shuffle)
        if not self.bucket:
            return order
        return bucketed(order, self._lengths, self.global_batch_size, seed=self.seed, epoch=epoch, shuffle=self.shuffle)

    def _read_ahead(
        self,
        epoch: int,
        starts: range,
        end: int,
        free: queue.SimpleQueue[Any],
        ready: queue.SimpleQueue[Batch | BaseException],
        stopped: threading.Event,
    ) -> None:
        """Fill free buffers with the batches that begin at `starts`; hand over whatever goes wrong."""
        try:
            order = self._order(epoch)
            key = derive_key("augment", int(self.seed), int(epoch)) if self.training else None
            for start in starts:
                buffers = free.get()
                if buffers is None or stopped.is_set():
                    return
                global_ids = order[start : min(start + self.global_batch_size, end)]
                share_of = share(global_ids.size, self.dp_rank, self.dp_size)
                ready.put(self._maker.fill(buffers, global_ids, *share_of, start, key))
        except BaseException as error:  # noqa: BLE001 - raised again where the batch would have come
            ready.put(error)
