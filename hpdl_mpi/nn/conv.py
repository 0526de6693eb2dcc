"""Convolution of NHWC images."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TypeVar

import numpy as np

from hpdl_mpi.kernels.elementwise import add_row_sums
from hpdl_mpi.nn.context import Context
from hpdl_mpi.nn.conv_methods import ConvShape, Method
from hpdl_mpi.nn.conv_rules import choose
from hpdl_mpi.nn.init import Constant, HeUniform, Initializer
from hpdl_mpi.nn.layer import Layer, Shape, require_count, require_flag, require_initializer, walk
from hpdl_mpi.nn.window import Pair, pair, window_output

Model = TypeVar("Model", bound=Layer)


class Conv2d(Layer):
    """Convolution with zero padding: (h, w, c) to (ho, wo, out_channels), ho = (h + 2 padding - kernel) // stride + 1.

    The weight is (out_channels, kh, kw, in_channels / groups).

    Parameters
    ----------
    out_channels : int
    kernel_size, stride, padding : int or (int, int)
        Vertical and horizontal, or one number for both.
    groups : int
        Channels of a group see each other alone; as many groups as channels make a depthwise convolution.
    bias : bool
    exact : bool
        Do without Winograd's method, by which most kernels of 3 x 3 and 5 x 5 go otherwise. It multiplies less, has
        about ten times the rounding error, and spreads a NaN to all outputs of its tiles; see `kernels.winograd`.
        Narrow groups go together otherwise, see `conv_rules.Grouped`.
    init, bias_init : Initializer
    """

    _method: Method

    def __init__(
        self,
        out_channels: int,
        kernel_size: int | Pair,
        *,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        groups: int = 1,
        bias: bool = True,
        exact: bool = False,
        init: Initializer = HeUniform(),
        bias_init: Initializer = Constant(0.0),
    ) -> None:
        self.out_channels = out_channels
        self.kernel_size = pair(self, kernel_size, "kernel_size")
        self.stride, self.padding = pair(self, stride, "stride"), pair(self, padding, "padding")
        self.groups = groups
        self.bias, self.exact = require_flag(self, bias, "bias"), require_flag(self, exact, "exact")
        self.init = require_initializer(self, init, "init")
        self.bias_init = require_initializer(self, bias_init, "bias_init")

    def build(self, input_shape: Shape) -> None:
        output = window_output(self, input_shape)
        self.out_channels = require_count(self, self.out_channels, "output")
        self.groups = require_count(self, self.groups, "groups")
        channels = input_shape[2]
        if channels % self.groups or self.out_channels % self.groups:
            raise self.refuse(
                "channels do not make groups of one size",
                found=f"{channels} channels to {self.out_channels} in {self.groups} groups",
                expected="a number of groups that divides both",
            )
        weight = self.out_channels, *self.kernel_size, channels // self.groups
        area = math.prod(self.kernel_size)
        fans = (area * weight[3], area * self.out_channels // self.groups)
        self.declare("weight", weight, self.init, fans, images=[weight[1:]])
        self._method = choose(ConvShape(weight, output, self.stride, self.padding, self.groups, self.exact))
        if self.bias:
            self.declare("bias", (self.out_channels,), self.bias_init, fans)

    @property
    def method(self) -> str:
        """How the built layer computes: the name of a method in `conv_rules.RULES`."""
        return self._method.name

    def output_shape(self, input_shape: Shape) -> Shape:
        return (*window_output(self, input_shape), self.out_channels)

    def operations(self, input_shape: Shape) -> int:
        taps = math.prod(self.kernel_size) * input_shape[2] // self.groups
        return 2 * math.prod(self.output_shape(input_shape)) * taps

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        y = ctx.take((len(x), *self.output_shape(x.shape[1:])), x.dtype)
        bias = self.params["bias"] if self.bias else x.reshape(-1)[:0]
        self._method.forward(x, self.params["weight"], bias, y, ctx)
        ctx.save(x=x)
        return y

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray | None:
        ctx.save(dy=dy)
        if not ctx.needs_dx:
            return None
        dx = ctx.take(ctx.saved["x"].shape, dy.dtype)
        self._method.backward_input(dy, self.params["weight"], dx, ctx)
        return dx

    def backward_weight(self, ctx: Context) -> None:
        x, dy = ctx.saved["x"], ctx.saved["dy"]
        self._method.backward_weight(x, dy, self.grads["weight"], ctx)
        if self.bias:
            add_row_sums(dy.reshape(-1, self.out_channels), self.grads["bias"])
        ctx.drop("x", "dy")


def make_exact(model: Model) -> Model:
    """Let all convolutions in a layer, built or not, be `exact`; return the layer. Local.

    Parameters
    ----------
    model : Layer
        Changed in place.

    Returns
    -------
    Layer
        The same one.
    """
    for layer in walk(model):
        if isinstance(layer, Conv2d):
            layer.exact = True
            if layer.declared:  # built: it has chosen a method
                layer._method = choose(replace(layer._method.shape, exact=True))
    return model
