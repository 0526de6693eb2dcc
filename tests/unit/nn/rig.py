"""A layer under test with its naive twin, and the rig that runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from hpdl_mpi.base.memory import Allocator, heap
from hpdl_mpi.kernels.schemes import SCHEMES, Scheme
from hpdl_mpi.nn import Context, Layer, Layout, MicroBatch, Pool, Shape, make_statistics, walk

BATCH = 3
SEED = 7
IDS = np.array([11, 4, 2**40 + 5])
"""Numbers of the samples in the dataset, in no order, one beyond 32 bits."""

Parameters = dict[str, np.ndarray]


def amplification(scheme: Scheme) -> float:
    """Return how much larger the sums of absolute terms are that a scheme adds up than those of the definition.

    Each output, and each element of the weight's gradient, is a sum over points of products of two sums. With ones in
    place of all numbers and absolute values in the matrices, it is to be held against the taps of a kernel, or the
    outputs of a tile, that the definition adds up; in two dimensions that counts twice.
    """
    filters = [scheme.FILTER[min(point, scheme.filters - 1)] for point in range(scheme.points)]
    inputs, outputs, kernels = (np.abs(np.array(matrix, float)) for matrix in (scheme.INPUT, scheme.OUTPUT, filters))
    forward = (outputs @ (inputs.sum(1) * kernels.sum(1))).max() / scheme.kernel
    gradient = (kernels.T @ (inputs.sum(1) * outputs.sum(0))).max() / scheme.tile
    return max(forward, gradient) ** 2


AMPLIFICATION = max(amplification(scheme) for found in SCHEMES.values() for scheme in found)
"""413, of tiles of two outputs under kernels of five."""


class Case(NamedTuple):
    """A layer, the shape of a sample, and its naive twin; the twin of a random layer is told its key elsewhere."""

    make: Callable[[], Layer]
    input_shape: Shape
    twin: Callable[[np.ndarray, Parameters], np.ndarray]
    tiled: bool = False
    """Whether sums mix what is in a tile of an image: the layer goes by Winograd's method."""

    joined: bool = False
    """Whether groups of channels go together, and a NaN reaches more of them than by definition."""

    mixes: bool = False
    """Whether samples see one another while training."""

    @property
    def rounding(self) -> float:
        """How much larger errors may be than those of sums in order."""
        return AMPLIFICATION if self.tiled else 1.0


def context_key(path: str, epoch: int = 0) -> np.uint64:
    """Return the random key of the layer at `path`."""
    batch = MicroBatch(Pool(), SEED)
    batch.begin(IDS, epoch=epoch, training=True)
    return Context(batch, path).key


class Rig:
    """A built layer with random parameters, on a pool that hands out NaN, with batches to run through it.

    Parameters
    ----------
    case : Case
    dtype : dtype
    needs_dx : bool
        Whether backward returns the gradient of the input.
    positive : bool
        Take absolute values of parameters and batches, so that sums become sums of absolute terms.
    allocate : callable
        Where parameters and gradients come from.
    """

    def __init__(
        self,
        case: Case,
        dtype: DTypeLike = np.float64,
        *,
        needs_dx: bool = True,
        positive: bool = False,
        allocate: Allocator = heap,
    ) -> None:
        self.layer = case.make()
        self.layer.build(case.input_shape)
        self.layout = Layout(self.layer)
        self.params, self.grads = (self.layout.allocate(dtype, allocate) for _ in range(2))
        self.layout.bind(self.layer, self.params, self.grads)
        self.statistics_layout, self.statistics = make_statistics(self.layer, dtype, allocate)
        self.pool = Pool(poison=True)
        self.batch = MicroBatch(self.pool, SEED)
        self.ctx = Context(self.batch, needs_dx=needs_dx)
        rng = np.random.default_rng(0)
        shape = (BATCH, *self.layer.output_shape(case.input_shape))
        for values in self.named_params.values():
            values[...] = rng.normal(size=values.shape)
        self.x = rng.normal(size=(BATCH, *case.input_shape)).astype(dtype)
        self.dy = rng.normal(size=shape).astype(dtype)
        if positive:
            for array in (self.params, self.x, self.dy):
                np.abs(array, out=array)

    @property
    def named_params(self) -> Parameters:
        """Views of the parameters, by full name."""
        return self.layout.views(self.params)

    def output(self, x: np.ndarray, ids: np.ndarray = IDS, *, epoch: int = 0, training: bool = True) -> np.ndarray:
        """Return a copy of y; nothing is kept for backward."""
        self.batch.begin(ids, epoch=epoch, training=training)
        self.batch.saving = False
        y = self.layer.forward(x, self.ctx)
        result = y.copy()
        self.pool.release(y)
        return result

    def step(self, x: np.ndarray, dy: np.ndarray, ids: np.ndarray = IDS, *, halves: bool = False) -> Any:
        """Run forward and backward, in two `halves` or at once; add to ``grads``; return a copy of dx, or None."""
        self.batch.begin(ids, training=True)
        y = self.layer.forward(x, self.ctx)
        self.pool.release(y)
        if halves:
            dx = self.layer.backward_input(dy, self.ctx)
            self.layer.backward_weight(self.ctx)
        else:
            dx = self.layer.backward(dy, self.ctx)
        result = None if dx is None else dx.copy()
        self.pool.release(dx)
        return result

    @property
    def depth(self) -> int:
        """Layers, containers included."""
        return len(list(walk(self.layer)))
