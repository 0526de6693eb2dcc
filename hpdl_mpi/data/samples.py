"""What a loader reads from: numbered samples, each of an input and a target."""

from __future__ import annotations

import abc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Self

import numpy as np

from hpdl_mpi.base.errors import BadSample, InputError, amend, amended
from hpdl_mpi.base.memory import check_memory
from hpdl_mpi.data.sampler import Shuffle, epoch_order
from hpdl_mpi.data.transform import Shape

CACHE_BYTES = 256 * 2**20
"""Default bound of the blocks kept in memory."""

WINDOW_BYTES = 64 * 2**20
"""Bytes of inputs that block shuffling mixes at most: a constant, so that the order depends on the data alone."""

_ORDER_BYTES: dict[Shuffle, int] = {"none": 8, "global": 24, "block": 48}
"""Of each sample, while the order of an epoch is made."""

Which = Literal["inputs", "targets"]


class Samples(abc.ABC):
    """Inputs and targets of many samples in files, local to this process. `read` may be called from any thread.

    Attributes
    ----------
    path : path-like
        As given to `open`.
    names : dict
        Of the arrays of "inputs" and "targets" in the files.
    num_samples : int
    input_shape, target_shape : tuple of int
        Of one sample, as stored.
    input_dtype, target_dtype : numpy dtype
        In memory: native byte order, float16 widened to float32.
    block_starts : int64 (num_blocks + 1,)
        First sample of each block of inputs, which is read as a whole.
    shuffle_window : int
        Blocks that block shuffling mixes: `WINDOW_BYTES` of inputs.
    fingerprint : str
        Digest of names, shapes, types, counts and blocks: what the order and meaning of sample ids depend on.
    """

    path: str | os.PathLike[str]
    names: dict[Which, str]
    num_samples: int
    input_shape: Shape
    target_shape: Shape
    input_dtype: np.dtype
    target_dtype: np.dtype
    block_starts: np.ndarray
    shuffle_window: int
    fingerprint: str

    @property
    @abc.abstractmethod
    def cache_bytes(self) -> int:
        """Bytes of the blocks kept in memory at most."""

    @abc.abstractmethod
    def read(self, ids: np.ndarray, inputs_out: np.ndarray | None, targets_out: np.ndarray | None) -> None:
        """Copy samples into the caller's arrays; local, blocking, thread-safe.

        Parameters
        ----------
        ids : int64 (n,)
            Any order, repeats allowed.
        inputs_out, targets_out : (n, *input_shape), (n, *target_shape)
            C-contiguous, of `input_dtype` and `target_dtype`; overwritten. None: these are not read.

        Raises
        ------
        InputError
            A file is damaged where the samples are; names the file and the samples.
        IndexError
            An id outside ``range(num_samples)``.
        """

    @abc.abstractmethod
    def place(self, sample_id: int) -> tuple[Path, str]:
        """Return the file that holds a sample, and where in it, for people."""

    @abc.abstractmethod
    def blocks(self, which: Which) -> Iterator[np.ndarray]:
        """Yield all samples in storage order, (n, *shape) at a time; each array is borrowed until the next step."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close the files; the next `read` opens them again."""

    @contextmanager
    def naming_files(self) -> Iterator[None]:
        """Put the file and the sample's place in it in front of a `BadSample` from within."""
        try:
            yield
        except BadSample as error:
            path, place = self.place(error.sample)
            amend(error, f"{path}: {place}: ")
            raise

    def order(self, seed: int, epoch: int, shuffle: Shuffle = "block") -> np.ndarray:
        """Return the ids of all samples, int64 (num_samples,), in the order of one epoch: see `sampler.epoch_order`.

        Raises
        ------
        InputError
            There is not enough memory for so many samples, which a file may claim to have.
        """
        what = f"the order of {self.num_samples:,} samples"
        remedy = "use fewer samples, or start fewer ranks on a node"
        with amended(f"{self.path}: "):
            check_memory(_ORDER_BYTES.get(shuffle, 0) * self.num_samples, what, remedy=remedy)
        try:
            return epoch_order(
                self.num_samples, self.block_starts, seed=seed, epoch=epoch, shuffle=shuffle, window=self.shuffle_window
            )
        except MemoryError:  # the system limits addresses (ulimit -v)
            raise InputError(f"not enough memory for {what}", where=self.path, remedy=remedy) from None

    def _check_read(self, which: Which, ids: np.ndarray, out: np.ndarray) -> None:
        """Raise for what `read` cannot take."""
        shape = self.input_shape if which == "inputs" else self.target_shape
        dtype = self.input_dtype if which == "inputs" else self.target_dtype
        if out.shape != (ids.size, *shape) or out.dtype != dtype or not out.flags.c_contiguous:
            raise ValueError(f"{which}: need a C-contiguous {(ids.size, *shape)} array of {dtype}")
        if ids.size and not 0 <= ids.min() <= ids.max() < self.num_samples:
            raise IndexError(f"sample ids must lie in [0, {self.num_samples})")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
