"""A stand-in for a model, which sleeps in place of computing: ranks that share cores would compute in turns."""

from __future__ import annotations

import time

import numpy as np

from hpdl_mpi.nn import Context, Layer, Sequential, Shape, leaves
from hpdl_mpi.nn.init import Constant


class Sleep(Layer):
    """Hands on what it gets after a while. Its gradients are zero.

    Parameters
    ----------
    num_parameters : int
    seconds : float
        A third of them forward, and of each half of backward.
    """

    def __init__(self, num_parameters: int, seconds: float) -> None:
        self._num_parameters, self._seconds = num_parameters, seconds

    def build(self, input_shape: Shape) -> None:
        if self._num_parameters:
            self.declare("weight", (self._num_parameters,), Constant(0.0))

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        time.sleep(self._seconds / 3)
        ctx.retain(x)
        return x

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray:
        time.sleep(self._seconds / 3)
        ctx.retain(dy)
        return dy

    def backward_weight(self, ctx: Context) -> None:
        time.sleep(self._seconds / 3)


def asleep(model: Layer, input_shape: Shape, seconds: float) -> Sequential:
    """Return what has a model's parameters, layer by layer, and sleeps where that computes.

    Parameters
    ----------
    model : Layer
    input_shape : tuple of int
    seconds : float
        Of a step; layers have a share that goes by their operations.
    """
    model.build(input_shape)
    rows = [
        (sum(int(np.prod(parameter.shape)) for parameter in layer.declared.values()), layer.operations(shape))
        for layer, shape in leaves(model, input_shape)
    ]
    total = sum(operations for _, operations in rows)
    return Sequential(*(Sleep(size, seconds * operations / total) for size, operations in rows if size or operations))
