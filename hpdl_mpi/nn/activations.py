"""Activations: element by element, and softmax over the last dimension."""

from __future__ import annotations

import abc
import math
from typing import Literal

import numpy as np

from hpdl_mpi.base.errors import is_number, is_one_of
from hpdl_mpi.kernels import activation as kernel
from hpdl_mpi.kernels import softmax as softmax_kernel
from hpdl_mpi.kernels.elementwise import multiply
from hpdl_mpi.kernels.gemm import as_matrix
from hpdl_mpi.nn.context import Context
from hpdl_mpi.nn.layer import Layer, Shape

Clipping = Literal["relu", "relu6"]
"""An activation that another layer may do by the way: it clips what comes in to an interval."""

_LIMITS = {None: (-math.inf, math.inf), "relu": (0.0, math.inf), "relu6": (0.0, 6.0)}


def clipping_limits(layer: Layer, activation: Clipping | None) -> tuple[float, float]:
    """Return the least and the greatest value that gets through the activation that a layer is asked to do.

    Raises
    ------
    InputError
        There is no such activation.
    """
    if activation is not None and not is_one_of(activation, filter(None, _LIMITS)):
        raise layer.refuse("no such activation", found=repr(activation), expected="'relu', 'relu6' or None")
    return _LIMITS[activation]


class _Activation(Layer):
    """y = f(x), dx from dy and what is kept; subclasses name the two kernels."""

    keeps_input = False
    """Whether x is kept for backward. By default y is: the layer behind needs it too."""

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    @abc.abstractmethod
    def _apply(self, x: np.ndarray, y: np.ndarray) -> None:
        """Write y; both have the shape of a batch."""

    @abc.abstractmethod
    def _differentiate(self, dy: np.ndarray, kept: np.ndarray, dx: np.ndarray) -> None:
        """Write dx."""

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        y = ctx.reuse_or_take(x)
        self._apply(x, y)
        ctx.save(kept=x if self.keeps_input else y)
        return y

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray:
        dx = ctx.reuse_or_take(dy)
        self._differentiate(dy, ctx.saved["kept"], dx)
        ctx.drop("kept")
        return dx


class LeakyReLU(_Activation):
    """y = x where x > 0, else slope x, with 0 <= slope (Maas et al., 2013)."""

    replayable = True

    def __init__(self, slope: float = 0.01) -> None:
        if not (is_number(slope) and 0 <= slope < math.inf):
            raise self.refuse("slope out of range", found=repr(slope), expected="a number of at least 0")
        self.slope = slope

    def _apply(self, x: np.ndarray, y: np.ndarray) -> None:
        kernel.leaky_relu(x.reshape(-1), self.slope, y.reshape(-1))

    def _differentiate(self, dy: np.ndarray, kept: np.ndarray, dx: np.ndarray) -> None:
        kernel.leaky_relu_backward(dy.reshape(-1), kept.reshape(-1), self.slope, dx.reshape(-1))


class _Clip(_Activation):
    """y = x clipped to an interval."""

    in_place = True
    limits: tuple[float, float]

    def _apply(self, x: np.ndarray, y: np.ndarray) -> None:
        kernel.clip(x.reshape(-1), *self.limits, y.reshape(-1))

    def _differentiate(self, dy: np.ndarray, kept: np.ndarray, dx: np.ndarray) -> None:
        kernel.clip_backward(dy.reshape(-1), kept.reshape(-1), *self.limits, dx.reshape(-1))


class ReLU(_Clip):
    """y = max(x, 0)."""

    replayable = True
    limits = _LIMITS["relu"]


class ReLU6(_Clip):
    """y = min(max(x, 0), 6) (Krizhevsky, "Convolutional deep belief networks on CIFAR-10", 2010)."""

    replayable = True
    limits = _LIMITS["relu6"]


class Sigmoid(_Activation):
    """y = 1 / (1 + exp(-x))."""

    replayable = True

    def _apply(self, x: np.ndarray, y: np.ndarray) -> None:
        kernel.sigmoid(x.reshape(-1), y.reshape(-1))

    def _differentiate(self, dy: np.ndarray, kept: np.ndarray, dx: np.ndarray) -> None:
        kernel.sigmoid_backward(dy.reshape(-1), kept.reshape(-1), dx.reshape(-1))


class Tanh(_Activation):
    """y = tanh(x)."""

    replayable = True

    def _apply(self, x: np.ndarray, y: np.ndarray) -> None:
        kernel.tanh(x.reshape(-1), y.reshape(-1))

    def _differentiate(self, dy: np.ndarray, kept: np.ndarray, dx: np.ndarray) -> None:
        kernel.tanh_backward(dy.reshape(-1), kept.reshape(-1), dx.reshape(-1))


class SiLU(_Activation):
    """y = x / (1 + exp(-x)) (Elfwing et al., 2017; "swish")."""

    replayable = True
    keeps_input = True

    def _apply(self, x: np.ndarray, y: np.ndarray) -> None:
        kernel.silu(x.reshape(-1), y.reshape(-1))

    def _differentiate(self, dy: np.ndarray, kept: np.ndarray, dx: np.ndarray) -> None:
        kernel.silu_backward(dy.reshape(-1), kept.reshape(-1), dx.reshape(-1))


class GELU(Layer):
    """y = x Phi(x), with the standard normal distribution Phi (Hendrycks and Gimpel, 2016).

    It keeps its slope, in the place of x where nobody else needs that: what forward has computed serves both.

    Parameters
    ----------
    approximate : {"none", "tanh"}
        With "tanh", Phi is replaced by (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, as in GPT-2.
    """

    replayable = True
    in_place = True

    def __init__(self, approximate: Literal["none", "tanh"] = "none") -> None:
        if not is_one_of(approximate, ("none", "tanh")):
            raise self.refuse("no such form", found=repr(approximate), expected="'none' or 'tanh'")
        self.approximate = approximate

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        y = ctx.take(x.shape, x.dtype)
        slope = ctx.reuse_or_take(x) if ctx.saves else None
        run = kernel.gelu if self.approximate == "none" else kernel.gelu_tanh
        run(x.reshape(-1), y.reshape(-1), x.reshape(-1)[:0] if slope is None else slope.reshape(-1))
        ctx.save(slope=slope)
        ctx.release(slope)
        return y

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray:
        dx = ctx.reuse_or_take(dy)
        multiply(dy.reshape(-1), ctx.saved["slope"].reshape(-1), dx.reshape(-1))
        ctx.drop("slope")
        return dx


class SwiGLU(_Activation):
    """y = silu(a) b, where a is the first half of the last dimension and b the second (Shazeer, 2020)."""

    replayable = True
    keeps_input = True

    def build(self, input_shape: Shape) -> None:
        if not input_shape or input_shape[-1] < 2 or input_shape[-1] % 2:
            raise self.refuse("needs two halves", found=f"samples of shape {input_shape}", expected="an even last dim")

    def output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape[:-1], input_shape[-1] // 2)

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        y = ctx.take(self.output_shape(x.shape), x.dtype)
        self._apply(x, y)
        ctx.save(kept=x)
        return y

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray:
        x = ctx.saved["kept"]
        dx = ctx.take(x.shape, x.dtype)
        self._differentiate(dy, x, dx)
        ctx.drop("kept")
        return dx

    def _apply(self, x: np.ndarray, y: np.ndarray) -> None:
        kernel.silu_gate(as_matrix(x), as_matrix(y))

    def _differentiate(self, dy: np.ndarray, kept: np.ndarray, dx: np.ndarray) -> None:
        kernel.silu_gate_backward(as_matrix(dy), as_matrix(kept), as_matrix(dx))


class Softmax(_Activation):
    """y = exp(x) / sum of exp(x), over the last dimension. For training prefer `CrossEntropy` on the raw outputs."""

    replayable = True

    def _apply(self, x: np.ndarray, y: np.ndarray) -> None:
        softmax_kernel.softmax(x.reshape(-1, x.shape[-1]), y.reshape(-1, x.shape[-1]))

    def _differentiate(self, dy: np.ndarray, kept: np.ndarray, dx: np.ndarray) -> None:
        rows = (-1, kept.shape[-1])
        softmax_kernel.softmax_backward(dy.reshape(rows), kept.reshape(rows), dx.reshape(rows))
