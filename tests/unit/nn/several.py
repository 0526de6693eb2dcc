"""Between one array, which a `Case` has, and activations of several arrays."""

from __future__ import annotations

import math
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from hpdl_mpi.kernels.recording import replayed
from hpdl_mpi.nn import Context, Layer, Shape


class Split(Layer):
    """Cuts a sequence into several, of these numbers of steps; one of `masks` becomes one number for each step."""

    replayable = True

    def __init__(self, *steps: int, masks: tuple[int, ...] = ()) -> None:
        self.bounds = list(pairwise(accumulate(steps, initial=0)))
        self.masks = masks

    def output_shape(self, input_shape: Shape) -> Shape:
        return tuple(  # type: ignore[return-value]
            (stop - start,) if number in self.masks else (stop - start, input_shape[1])
            for number, (start, stop) in enumerate(self.bounds)
        )

    def forward(self, x: np.ndarray, ctx: Context) -> Any:
        results = []
        for shape, (start, stop) in zip(self.output_shape(x.shape[1:]), self.bounds, strict=True):
            results.append(ctx.take((len(x), *shape), x.dtype))
            replayed(np.copyto, results[-1], x[:, start:stop, 0] if len(shape) == 1 else x[:, start:stop])
        ctx.save(shape=x.shape)
        return tuple(results)

    def backward_input(self, dy: Any, ctx: Context) -> np.ndarray:
        dx = ctx.take(ctx.saved["shape"], dy[0].dtype)
        ctx.drop("shape")
        replayed(dx.fill, 0)
        for part, (start, stop) in zip(dy, self.bounds, strict=True):
            if part is not None:
                replayed(np.copyto, dx[:, start:stop], part)
        return dx


class Join(Layer):
    """Writes all arrays of an activation into one, (features,)."""

    reads = writes = 2**30
    replayable = True

    def output_shape(self, input_shape: Any) -> Shape:
        return (sum(math.prod(shape) for shape in input_shape),)

    def forward(self, x: Any, ctx: Context) -> np.ndarray:
        y = ctx.take((len(x[0]), *self.output_shape([array.shape[1:] for array in x])), x[0].dtype)
        ctx.save(shapes=tuple(array.shape for array in x))
        rows = [array.reshape(len(array), math.prod(array.shape[1:])) for array in x]
        replayed(partial(np.concatenate, rows, axis=1, out=y))
        return y

    def backward_input(self, dy: np.ndarray, ctx: Context) -> Any:
        gradients, start = [], 0
        for shape in ctx.saved["shapes"]:
            size = math.prod(shape[1:])
            gradients.append(ctx.take(shape, dy.dtype))
            replayed(np.copyto, gradients[-1].reshape(len(dy), size), dy[:, start : start + size])
            start += size
        ctx.drop("shapes")
        return tuple(gradients)
