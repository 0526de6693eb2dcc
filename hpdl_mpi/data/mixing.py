"""Mixup of a rank's share of a batch: whom its samples are mixed with, and in which parts."""

from __future__ import annotations

import numpy as np

from hpdl_mpi.kernels import mixup as kernel

EXTRA = 2
"""Samples of other ranks that a share needs at most: a partner before its first, and one after its last."""


class Mixing:
    """Mixes batches in one thread; see `kernels.mixup`. Owns what it draws for the batch that it has chosen last.

    Parameters
    ----------
    alpha : float
        Of the Beta distribution.
    rows : int
        Samples of a share at most.
    """

    def __init__(self, alpha: float, rows: int) -> None:
        self._alpha = float(alpha)
        self._ids = np.empty(rows + EXTRA, np.int64)
        self._all_partners, self._all_parts = np.empty(rows, np.int64), np.empty(rows)
        self._partners, self._parts = self._all_partners, self._all_parts

    def choose(self, key: np.uint64, global_ids: np.ndarray, first: int, last: int) -> np.ndarray:
        """Return the ids of the samples to read, int64 (m,): slots `first` to `last` of a batch, and partners behind.

        Parameters
        ----------
        key : uint64
            Of (seed, epoch).
        global_ids : int64 array, shape (size,)
            Of all ranks.
        first, last : int
        """
        self._partners, self._parts = self._all_partners[: last - first], self._all_parts[: last - first]
        kernel.draw_parts(key, global_ids[first:last], self._alpha, self._parts)
        return self._ids[: kernel.pair_up(global_ids, first, last, self._ids, self._partners)]

    def mix(self, values: np.ndarray) -> None:
        """Mix samples, or targets that are values, in place: float (m, ...), C-contiguous."""
        if len(values):
            kernel.mix(values.reshape(len(values), -1), self._partners, self._parts)

    def mix_labels(self, labels: np.ndarray, out: np.ndarray) -> None:
        """Write both classes of each sample: labels int64 (m,), out MIXED (n,)."""
        kernel.mix_labels(labels, self._partners, self._parts, out)
