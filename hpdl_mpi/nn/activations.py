"""Activations: element by element, and softmax over the last dimension. Each keeps its output, not its input."""

from __future__ import annotations

import abc
import math

import numpy as np

from hpdl_mpi.kernels import activation as kernel
from hpdl_mpi.kernels import softmax as softmax_kernel
from hpdl_mpi.nn.context import Context
from hpdl_mpi.nn.layer import Layer, Shape


class _Activation(Layer):
    """y = f(x), dx from dy and y; subclasses name the two kernels."""

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    @abc.abstractmethod
    def _apply(self, x: np.ndarray, y: np.ndarray) -> None:
        """Write y; both have the shape of a batch."""

    @abc.abstractmethod
    def _differentiate(self, dy: np.ndarray, y: np.ndarray, dx: np.ndarray) -> None:
        """Write dx."""

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        y = ctx.take(x.shape, x.dtype)
        self._apply(x, y)
        ctx.save(y=y)
        return y

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray:
        dx = ctx.take(dy.shape, dy.dtype)
        self._differentiate(dy, ctx.saved["y"], dx)
        ctx.drop("y")
        return dx


class LeakyReLU(_Activation):
    """y = x where x > 0, else slope x, with 0 <= slope (Maas et al., 2013)."""

    def __init__(self, slope: float = 0.01) -> None:
        if not 0 <= slope < math.inf:
            raise self.refuse("slope out of range", found=slope, expected="a number of at least 0")
        self.slope = slope

    def _apply(self, x: np.ndarray, y: np.ndarray) -> None:
        kernel.relu(x.reshape(-1), self.slope, y.reshape(-1))

    def _differentiate(self, dy: np.ndarray, y: np.ndarray, dx: np.ndarray) -> None:
        kernel.relu_backward(dy.reshape(-1), y.reshape(-1), self.slope, dx.reshape(-1))


class ReLU(LeakyReLU):
    """y = max(x, 0)."""

    def __init__(self) -> None:
        super().__init__(0.0)


class Sigmoid(_Activation):
    """y = 1 / (1 + exp(-x))."""

    def _apply(self, x: np.ndarray, y: np.ndarray) -> None:
        kernel.sigmoid(x.reshape(-1), y.reshape(-1))

    def _differentiate(self, dy: np.ndarray, y: np.ndarray, dx: np.ndarray) -> None:
        kernel.sigmoid_backward(dy.reshape(-1), y.reshape(-1), dx.reshape(-1))


class Tanh(_Activation):
    """y = tanh(x)."""

    def _apply(self, x: np.ndarray, y: np.ndarray) -> None:
        kernel.tanh(x.reshape(-1), y.reshape(-1))

    def _differentiate(self, dy: np.ndarray, y: np.ndarray, dx: np.ndarray) -> None:
        kernel.tanh_backward(dy.reshape(-1), y.reshape(-1), dx.reshape(-1))


class Softmax(_Activation):
    """y = exp(x) / sum of exp(x), over the last dimension. For training prefer `CrossEntropy` on the raw outputs."""

    def _apply(self, x: np.ndarray, y: np.ndarray) -> None:
        softmax_kernel.softmax(x.reshape(-1, x.shape[-1]), y.reshape(-1, x.shape[-1]))

    def _differentiate(self, dy: np.ndarray, y: np.ndarray, dx: np.ndarray) -> None:
        rows = (-1, y.shape[-1])
        softmax_kernel.softmax_backward(dy.reshape(rows), y.reshape(rows), dx.reshape(rows))
