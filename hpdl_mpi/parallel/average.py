"""A running average of a replica's weights, which often generalises better than the weights themselves."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from hpdl_mpi.base.errors import is_number, require
from hpdl_mpi.kernels import update as kernel
from hpdl_mpi.nn import Layout
from hpdl_mpi.optim import Chunks


def checked_decay(value: float) -> float:
    """Return the decay of an average, or raise an InputError if it is none."""
    require("training.ema", value, is_number(value) and 0 < value < 1, "a number above 0 and below 1")
    return float(value)


class MovingAverage:
    """Exponential moving averages of parameters and statistics: a = decay a + (1 - decay) v after each step.

    Polyak and Juditsky, "Acceleration of stochastic approximation by averaging" (1992). The first step's values are
    where the average begins, and statistics are averaged like parameters, as in PyTorch's
    ``AveragedModel(multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)``.

    Parameters
    ----------
    decay : float
        Above 0, below 1. The average looks back over some ``1 / (1 - decay)`` steps.
    layout, statistics_layout : Layout
        Of the two flat arrays that it follows.
    dtype : dtype
        Theirs.

    Attributes
    ----------
    params, statistics : array
        The averages, each laid out as what it follows.

    Raises
    ------
    InputError
        The decay is out of range.
    """

    def __init__(self, decay: float, layout: Layout, statistics_layout: Layout, dtype: DTypeLike) -> None:
        self.decay = checked_decay(decay)
        self.params, self.statistics = layout.allocate(dtype), statistics_layout.allocate(dtype)
        self._chunks, self._statistics_chunks = Chunks(layout), Chunks(statistics_layout)

    def begin(self, params: np.ndarray, statistics: np.ndarray) -> None:
        """Let the averages be these values."""
        np.copyto(self.params, params)
        np.copyto(self.statistics, statistics)

    def follow(self, params: np.ndarray, statistics: np.ndarray) -> None:
        """Move towards these values: one fused pass, in place; allocates nothing."""
        rest = 1.0 - self.decay
        kernel.average(self.params, params, self._chunks.bounds, rest)
        kernel.average(self.statistics, statistics, self._statistics_chunks.bounds, rest)
