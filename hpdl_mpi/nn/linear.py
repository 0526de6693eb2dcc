"""The fully connected layer."""

from __future__ import annotations

import numpy as np

from hpdl_mpi.kernels.elementwise import add_row_sums, fill_rows
from hpdl_mpi.kernels.gemm import as_matrix, matmul
from hpdl_mpi.nn.context import Context
from hpdl_mpi.nn.flat import images_in
from hpdl_mpi.nn.init import Constant, HeUniform, Initializer
from hpdl_mpi.nn.layer import Layer, Shape, require_count, require_flag, require_initializer


class Linear(Layer):
    """y = x W^T + b over the last dimension; W is (out_features, in_features), as in PyTorch.

    Parameters
    ----------
    out_features : int
    bias : bool
    init, bias_init : Initializer
    """

    def __init__(
        self,
        out_features: int,
        *,
        bias: bool = True,
        init: Initializer = HeUniform(),
        bias_init: Initializer = Constant(0.0),
    ) -> None:
        self.out_features = out_features
        self.bias = require_flag(self, bias, "bias")
        self.init = require_initializer(self, init, "init")
        self.bias_init = require_initializer(self, bias_init, "bias_init")

    def build(self, input_shape: Shape) -> None:
        if not input_shape:
            raise self.refuse("needs features", found="samples that are single numbers", expected="at least one dim")
        if input_shape[-1] < 1:
            raise self.refuse("needs features", found=f"samples of shape {input_shape}", expected="at least 1")
        self.out_features = require_count(self, self.out_features, "output")
        fans = (input_shape[-1], self.out_features)
        shape = self.out_features, input_shape[-1]
        self.declare("weight", shape, self.init, fans, images=images_in(input_shape))
        if self.bias:
            self.declare("bias", (self.out_features,), self.bias_init, fans)

    def output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape[:-1], self.out_features)

    def operations(self, input_shape: Shape) -> int:
        return 2 * int(np.prod(input_shape)) * self.out_features

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        y = ctx.take((*x.shape[:-1], self.out_features), x.dtype)
        if self.bias:
            fill_rows(self.params["bias"], as_matrix(y))
        matmul(as_matrix(x), self.params["weight"], as_matrix(y), trans_b=True, accumulate=self.bias)
        ctx.save(x=x)
        return y

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray | None:
        ctx.save(dy=dy)
        if not ctx.needs_dx:
            return None
        weight = self.params["weight"]
        dx = ctx.take((*dy.shape[:-1], weight.shape[1]), dy.dtype)
        matmul(as_matrix(dy), weight, as_matrix(dx))
        return dx

    def backward_weight(self, ctx: Context) -> None:
        x, dy = as_matrix(ctx.saved["x"]), as_matrix(ctx.saved["dy"])
        matmul(dy, x, self.grads["weight"], trans_a=True, accumulate=True)
        if self.bias:
            add_row_sums(dy, self.grads["bias"])
        ctx.drop("x", "dy")
