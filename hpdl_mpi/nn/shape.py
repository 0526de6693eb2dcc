"""Layers that only change the shape."""

from __future__ import annotations

import math

import numpy as np

from hpdl_mpi.nn.context import Context
from hpdl_mpi.nn.flat import FlatShape
from hpdl_mpi.nn.layer import Layer, Shape


class Flatten(Layer):
    """Each sample becomes one row, in C order: an image (h, w, c) gives h w c features, channels fastest."""

    def output_shape(self, input_shape: Shape) -> Shape:
        if isinstance(input_shape, FlatShape):
            return input_shape
        return FlatShape([input_shape]) if len(input_shape) == 3 else (math.prod(input_shape),)

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        ctx.save(shape=x.shape)
        ctx.retain(x)
        return x.reshape(len(x), math.prod(x.shape[1:]))

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray:
        dx = dy.reshape(ctx.saved["shape"])
        ctx.drop("shape")
        ctx.retain(dx)
        return dx
