"""What optimizers share: state as flat arrays, the table of what to update, the gradient's norm."""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Collection, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import DTypeLike

from hpdl_mpi.base.errors import is_flag, is_number, require
from hpdl_mpi.kernels.update import Terms, sum_squares
from hpdl_mpi.nn.layout import Layout

_CHUNK = 65536
"""Elements of a chunk: the grain in which threads share an update."""


class Chunks:
    """The table of runs of elements that an update goes over: segments of a layout, cut into pieces.

    Parameters
    ----------
    layout : Layout
    start, stop : int, optional
        The slice of the flat arrays that is updated, by default all of it; positions count from `start`.
    names : collection of str, optional
        Of the parameters that the table has; by default all.

    Attributes
    ----------
    bounds : int64 array, shape (c, 2)
    decays, matrix_decays : float64 array, shape (c,)
        1 where decay applies, else 0; and where it applies to matrices alone (parameters of several dims).
    ones : float64 array, shape (c,)
    """

    def __init__(
        self, layout: Layout, start: int = 0, stop: int | None = None, *, names: Collection[str] | None = None
    ) -> None:
        stop = layout.size if stop is None else stop
        bounds: list[tuple[int, int]] = []
        decays: list[float] = []
        matrices: list[bool] = []
        firsts: list[int] = []
        for segment in layout.segments:
            if names is not None and segment.name not in names:
                continue
            first, last = max(segment.start, start), min(segment.stop, stop)
            if first < last:
                firsts.append(len(bounds))
            for begin in range(first, last, _CHUNK):
                bounds.append((begin - start, min(begin + _CHUNK, last) - start))
                decays.append(float(segment.parameter.decay))
                matrices.append(len(segment.shape) > 1)
        self.bounds = np.array(bounds, np.int64).reshape(-1, 2)
        self.decays = np.array(decays, np.float64)
        self.matrix_decays = self.decays * np.array(matrices, bool)
        self.ones = np.ones(len(bounds))
        self._sums = np.zeros(len(bounds))
        self._firsts = np.array(firsts, np.int64)
        self._numbers = np.repeat(np.arange(len(firsts)), np.diff(np.array([*firsts, len(bounds)])))
        self._totals = np.zeros((2, len(firsts)))
        self._products, self._zero = np.zeros(len(firsts)), np.zeros(len(firsts), bool)
        self._ratios, self._bare = np.ones(len(bounds)), np.zeros(len(bounds), bool)

    def decays_of(self, *, matrices_only: bool) -> np.ndarray:
        """Return `matrix_decays`, or `decays`."""
        return self.matrix_decays if matrices_only else self.decays

    def sum_squares(self, x: np.ndarray) -> float:
        """Return the sum of squares of a flat slice, summed in float64 and in a fixed order."""
        sum_squares(x, self.bounds, self._sums)
        return math.fsum(self._sums)

    def norms(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the norm of each parameter's part of two flat slices, shape (2, parameters), until the next call."""
        for array, totals in zip((x, y), self._totals, strict=True):
            sum_squares(array, self.bounds, self._sums)
            if totals.size:
                np.add.reduceat(self._sums, self._firsts, out=totals)
        return np.sqrt(self._totals, out=self._totals)

    def ratios(self, above: np.ndarray, below: np.ndarray, decays: np.ndarray) -> np.ndarray:
        """Return the quotient of two numbers of each parameter, for each run of it; shape (c,), until the next call.

        It is 1 where `decays` is 0, or either number is zero.
        """
        np.multiply(above, below, out=self._products)
        np.less_equal(self._products, 0, out=self._zero)
        np.copyto(above, 1.0, where=self._zero)
        np.copyto(below, 1.0, where=self._zero)
        np.divide(above, below, out=above)
        np.take(above, self._numbers, out=self._ratios)
        np.copyto(self._ratios, 1.0, where=np.equal(decays, 0, out=self._bare))
        return self._ratios


class Optimizer(abc.ABC):
    """The rule of an update. It holds settings only: its state lies in `slots`, flat arrays of the parameters' layout.

    Attributes
    ----------
    lr : float
        The peak learning rate; a `Schedule` multiplies it.
    slots : tuple of str
        Names of the state arrays, all of which start at zero.
    layerwise : bool
        Whether an update looks at whole parameters, so that these must not be cut.
    """

    lr: float
    slots: tuple[str, ...]
    layerwise: ClassVar[bool] = False

    @abc.abstractmethod
    def update(
        self,
        params: np.ndarray,
        grads: np.ndarray,
        slots: Sequence[np.ndarray],
        chunks: Chunks,
        *,
        step: int,
        lr: float,
        scale: float = 1.0,
        terms: Terms | None = None,
    ) -> None:
        """Update flat slices in place and zero the gradients. Local; allocates nothing.

        Parameters
        ----------
        params, grads : array, shape (size,)
        slots : sequence of array
            One per name of ``self.slots``, like `params`.
        chunks : Chunks
        step : int
            Updates done before this one.
        lr : float
            The learning rate of this step.
        scale : float
            Multiplies the gradients before anything else, but for the sum with `terms`.
        terms : Terms, optional
            Gradients of other ranks that are added to `grads` before, and zeroed; none for layerwise updates.
        """


@functools.lru_cache
def no_terms(dtype: DTypeLike) -> Terms:
    """Return what adds nothing to gradients of this dtype."""
    return Terms(np.zeros((0, 0), dtype), 0, 0)


def checked_rate(name: str, value: float, below: float = math.inf) -> float:
    """Return a setting of an optimizer; raise an InputError unless it is a number from 0, below a bound."""
    expected = "at least 0" if math.isinf(below) else f"at least 0 and below {below:g}"
    require(f"optimizer.{name}", value, is_number(value) and 0 <= value < below, expected)
    return float(value)


def checked_flag(name: str, value: bool) -> bool:
    """Return a setting of an optimizer; raise an InputError unless it is true or false."""
    require(f"optimizer.{name}", value, is_flag(value), "true or false")
    return bool(value)


def clip_factor(norm: float, limit: float | None) -> float:
    """Return what brings a gradient of this norm down to the limit, 1 if it is below or there is none, NaN for NaN.

    Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks" (2013).
    """
    return 1.0 if limit is None else min(limit / (norm + 1e-6), 1.0)
