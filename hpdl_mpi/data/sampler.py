"""Which samples, in which order: pure functions of sizes, seed and epoch, the same on every rank and world size.

A rank needs no state but (seed, epoch, offset) to go on where another run stopped. Shuffling inside a window that
slides over permuted blocks follows the algorithm "py1e" of MosaicML streaming: each block is read once, at an even
pace, and yet each batch mixes samples from all over the dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from hpdl_mpi.base.errors import is_one_of, require
from hpdl_mpi.kernels.random import derive_key, sample_keys

Shuffle = Literal["block", "global", "none"]
SHUFFLES: tuple[Shuffle, ...] = get_args(Shuffle)


def epoch_order(
    num_samples: int,
    block_starts: np.ndarray,
    *,
    seed: int,
    epoch: int,
    shuffle: Shuffle = "block",
    window: int,
) -> np.ndarray:
    """Return the ids of all samples in the order of one epoch.

    Parameters
    ----------
    num_samples : int
    block_starts : int64 (num_blocks + 1,)
        First sample of each stored block, rising from 0 to `num_samples`.
    shuffle : {"block", "global", "none"}
        ``"block"`` permutes the blocks and then delays each sample by a random part of `window` blocks, so that at
        no time more than ``window + 1`` blocks are begun and not finished. ``"global"`` permutes all samples.
    window : int
        Blocks to mix, at least 1.

    Returns
    -------
    int64 (num_samples,)
        A permutation of ``range(num_samples)``; the caller owns it.

    Raises
    ------
    InputError
        `shuffle` is none of these.
    """
    require("shuffle", shuffle, is_one_of(shuffle, SHUFFLES), " or ".join(SHUFFLES))
    if shuffle == "none":
        return np.arange(num_samples)
    sample_key = derive_key("samples", int(seed), int(epoch))
    if shuffle == "global":
        return shuffled(np.arange(num_samples), sample_key)
    blocks = shuffled(np.arange(len(block_starts) - 1), derive_key("blocks", int(seed), int(epoch)))
    lengths = np.diff(block_starts)[blocks]
    ids = np.arange(num_samples) + np.repeat(block_starts[blocks] - (np.cumsum(lengths) - lengths), lengths)
    turn = np.repeat(np.arange(len(blocks)), lengths)
    return ids[np.argsort(turn + window * (_keys(ids, sample_key) * 2.0**-64), kind="stable")]


BUCKETED_BATCHES = 50
"""Batches among whose samples those of like lengths are put together."""


def bucketed(
    order: np.ndarray,
    lengths: Sequence[np.ndarray],
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    shuffle: Shuffle = "block",
    window: int = BUCKETED_BATCHES,
) -> np.ndarray:
    """Return an order of samples in which those of a batch have like lengths, so that little of it is padding.

    Every `window` batches of the given order are sorted by length, and then the batches among themselves put back into
    a random order. The samples of the last, smaller batch stay where they are.

    Parameters
    ----------
    order : int64 (n,)
        Ids as `epoch_order` gives them.
    lengths : sequence of int64 (n,)
        Of each sample by its id; the first counts most.
    batch_size : int
        Of all ranks together.
    seed, epoch : int
    shuffle : {"block", "global", "none"}
        With ``"none"`` batches stay sorted.
    window : int
        Batches.

    Returns
    -------
    int64 (n,)
        A permutation of `order`; the caller owns it.
    """
    whole = order.size // batch_size * batch_size
    ids, batches = order[:whole], np.arange(whole // batch_size)
    keys = [values[ids] for values in reversed(lengths)]
    ids = ids[np.lexsort((*keys, np.arange(whole) // (batch_size * window)))].reshape(-1, batch_size)
    if shuffle != "none":
        ids = ids[np.lexsort((_keys(batches, derive_key("batches", int(seed), int(epoch))), batches // window))]
    return np.concatenate([ids.reshape(-1), order[whole:]])


def shuffled(ids: np.ndarray, key: np.uint64) -> np.ndarray:
    """Return the ids sorted by a random number that belongs to each of them under `key`; ids int64 (n,)."""
    return ids[np.argsort(_keys(ids, key), kind="stable")]


def _keys(ids: np.ndarray, key: np.uint64) -> np.ndarray:
    keys = np.empty(ids.size, np.uint64)
    sample_keys(key, ids, keys)
    return keys
