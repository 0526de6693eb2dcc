"""Fully connected layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from hpdl_mpi.kernels.activation import clip
from hpdl_mpi.kernels.elementwise import add_row_sums
from hpdl_mpi.kernels.gemm import as_matrix, matmul
from hpdl_mpi.nn.context import Context
from hpdl_mpi.nn.flat import images_in
from hpdl_mpi.nn.init import Constant, HeUniform, Initializer
from hpdl_mpi.nn.layer import Layer, Shape, require_count, require_flag, require_initializer
from hpdl_mpi.nn.members import member_shapes


class Linear(Layer):
    """y = x W^T + b over the last dimension; W is (out_features, in_features), as in PyTorch.

    Parameters
    ----------
    out_features : int
    bias : bool
    init, bias_init : Initializer
    in_first : bool
        Whether W is (in_features, out_features), as in GPT-2's files, and y = x W + b.
    names : (str, str)
        Of W and b.
    """

    replayable = True

    def __init__(
        self,
        out_features: int,
        *,
        bias: bool = True,
        init: Initializer = HeUniform(),
        bias_init: Initializer = Constant(0.0),
        in_first: bool = False,
        names: tuple[str, str] = ("weight", "bias"),
    ) -> None:
        self.out_features = out_features
        self.bias = require_flag(self, bias, "bias")
        self.init = require_initializer(self, init, "init")
        self.bias_init = require_initializer(self, bias_init, "bias_init")
        self.in_first = require_flag(self, in_first, "in_first")
        self.names = names

    @property
    def adds(self) -> bool:
        return True

    def build(self, input_shape: Shape) -> None:
        if not input_shape:
            raise self.refuse("needs features", found="samples that are single numbers", expected="at least one dim")
        if input_shape[-1] < 1:
            raise self.refuse("needs features", found=f"samples of shape {input_shape}", expected="at least 1")
        self.out_features = require_count(self, self.out_features, "output")
        images = images_in(input_shape)
        if images and self.in_first:
            raise self.refuse("in_first is not for flattened images", found=f"images {images}", expected="features")
        fans = (input_shape[-1], self.out_features)
        shape = fans if self.in_first else fans[::-1]
        self.declare(self.names[0], shape, self.init, fans, images=images)
        if self.bias:
            self.declare(self.names[1], (self.out_features,), self.bias_init, fans)

    def output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape[:-1], self.out_features)

    def operations(self, input_shape: Shape) -> int:
        return 2 * math.prod(input_shape) * self.out_features

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        y = ctx.take((*x.shape[:-1], self.out_features), x.dtype)
        matmul(
            as_matrix(x),
            self.params[self.names[0]],
            as_matrix(y),
            trans_b=not self.in_first,
            accumulate=as_matrix(ctx.addend.values) if ctx.addend else False,
            bias=self.params[self.names[1]] if self.bias else None,
            packer=ctx.batch.packer,
        )
        if ctx.addend and math.isfinite(min(map(abs, ctx.addend.limits))):
            clip(y.reshape(-1), *ctx.addend.limits, y.reshape(-1))
        ctx.save(x=x)
        return y

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray | None:
        ctx.save(dy=dy)
        if not ctx.needs_dx:
            return None
        x = ctx.saved["x"]
        dx = ctx.take(x.shape, dy.dtype)
        weight, packer = self.params[self.names[0]], ctx.batch.packer
        matmul(as_matrix(dy), weight, as_matrix(dx), trans_b=self.in_first, packer=packer)
        return dx

    def backward_weight(self, ctx: Context) -> None:
        x, dy = as_matrix(ctx.saved["x"]), as_matrix(ctx.saved["dy"])
        left, right = (x, dy) if self.in_first else (dy, x)
        matmul(left, right, self.grads[self.names[0]], trans_a=True, accumulate=True)
        if self.bias:
            add_row_sums(dy, self.grads[self.names[1]])
        ctx.drop("x", "dy")


class JoinedLinear(Layer):
    """Several `Linear` layers that read the same input; their outputs lie side by side in one array.

    Parameters
    ----------
    out_features : mapping of str to int
        Of each layer, by its name, in the order of the outputs.
    bias : bool
    init : Initializer
    """

    replayable = True

    def __init__(self, out_features: Mapping[str, int], *, bias: bool = True, init: Initializer = HeUniform()) -> None:
        self.out_features = {
            name: require_count(self, count, f"outputs {name}") for name, count in out_features.items()
        }
        self.bias = require_flag(self, bias, "bias")
        self.init = require_initializer(self, init, "init")

    def build(self, input_shape: Shape) -> None:
        if not input_shape or input_shape[-1] < 1:
            raise self.refuse("needs features", found=f"samples of shape {input_shape}", expected="at least 1")
        if images_in(input_shape):
            raise self.refuse("is not for flattened images", found=images_in(input_shape), expected="features")
        for name, count in self.out_features.items():
            fans = input_shape[-1], count
            self.declare(f"{name}.weight", fans[::-1], self.init, fans)
            if self.bias:
                self.declare(f"{name}.bias", (count,), Constant(0.0), fans)

    def output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape[:-1], sum(self.out_features.values()))

    def operations(self, input_shape: Shape) -> int:
        return 2 * math.prod(input_shape) * sum(self.out_features.values())

    def _parts(self, joined: np.ndarray) -> list[tuple[str, np.ndarray]]:
        """Pair the layers' names with their columns of a joined array, as matrices."""
        bounds = pairwise(accumulate(self.out_features.values(), initial=0))
        matrix = as_matrix(joined)
        return [(name, matrix[:, slice(*bound)]) for name, bound in zip(self.out_features, bounds, strict=True)]

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        y = ctx.take(self.output_shape(x.shape), x.dtype)
        for name, columns in self._parts(y):
            bias = self.params[f"{name}.bias"] if self.bias else None
            weight, packer = self.params[f"{name}.weight"], ctx.batch.packer
            matmul(as_matrix(x), weight, columns, trans_b=True, bias=bias, packer=packer)
        ctx.save(x=x)
        return y

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray | None:
        ctx.save(dy=dy)
        if not ctx.needs_dx:
            return None
        x: Any = ctx.saved["x"]
        dx = ctx.take(x.shape, dy.dtype)
        for number, (name, columns) in enumerate(self._parts(dy)):
            weight, packer = self.params[f"{name}.weight"], ctx.batch.packer
            matmul(columns, weight, as_matrix(dx), accumulate=number > 0, packer=packer)
        return dx

    def backward_weight(self, ctx: Context) -> None:
        x, dy = as_matrix(ctx.saved["x"]), ctx.saved["dy"]
        for name, columns in self._parts(dy):
            matmul(columns, x, self.grads[f"{name}.weight"], trans_a=True, accumulate=True)
            if self.bias:
                add_row_sums(columns, self.grads[f"{name}.bias"])
        ctx.drop("x", "dy")


class CrossLinear(Layer):
    """The queries of one array, and the keys and values of another, the memory, by one matrix.

    q = x W[:k]^T + b[:k] and kv = memory W[k:]^T + b[k:], with k `query_features`; x and memory have equally many
    features. It stands in front of `CrossAttention`. PyTorch's MultiheadAttention has its weights so.

    Parameters
    ----------
    query_features, memory_features : int
    init : Initializer
    names : (str, str)
        Of W and b.
    """

    replayable = True
    reads, writes = 2, 2

    def __init__(
        self,
        query_features: int,
        memory_features: int,
        *,
        init: Initializer = HeUniform(),
        names: tuple[str, str] = ("weight", "bias"),
    ) -> None:
        self.query_features = require_count(self, query_features, "query features")
        self.memory_features = require_count(self, memory_features, "memory features")
        self.init = require_initializer(self, init, "init")
        self.names = names

    def build(self, input_shape: Shape) -> None:
        shapes = member_shapes(input_shape)
        if len(shapes) != 2 or not all(shapes) or shapes[0][-1] != shapes[1][-1] or shapes[0][-1] < 1:
            raise self.refuse(
                "needs an array and a memory",
                found=f"samples of shape {input_shape}",
                expected="two arrays of equally many features",
            )
        fans = shapes[0][-1], self.query_features + self.memory_features
        self.declare(self.names[0], fans[::-1], self.init, fans)
        self.declare(self.names[1], fans[1:], Constant(0.0), fans)

    def output_shape(self, input_shape: Shape) -> Shape:
        x, memory = member_shapes(input_shape)
        return (*x[:-1], self.query_features), (*memory[:-1], self.memory_features)  # type: ignore[return-value]

    def operations(self, input_shape: Shape) -> int:
        x, memory = member_shapes(input_shape)
        return 2 * (math.prod(x) * self.query_features + math.prod(memory) * self.memory_features)

    def _parts(self, arrays: dict[str, np.ndarray]) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """Return the parts of W and b, or of their gradients, that queries have, and that keys and values have."""
        weight, bias = (arrays[name] for name in self.names)
        first = self.query_features
        return (weight[:first], bias[:first]), (weight[first:], bias[first:])

    def forward(self, x: Any, ctx: Context) -> Any:
        (array, memory), (of_queries, of_memory) = x, self._parts(self.params)
        queries, known = self._project(array, of_queries, ctx), ctx.recall("memory")
        if known is None:
            known = self._project(memory, of_memory, ctx)
            if ctx.remembers:  # while a sequence comes in pieces the memory is the same for all of them
                ctx.remember("memory", known)
        else:
            ctx.retain(known)
        ctx.save(x=x)
        return queries, known

    @staticmethod
    def _project(x: np.ndarray, part: tuple[np.ndarray, np.ndarray], ctx: Context) -> np.ndarray:
        weight, bias = part
        y = ctx.take((*x.shape[:-1], len(weight)), x.dtype)
        matmul(as_matrix(x), weight, as_matrix(y), trans_b=True, bias=bias, packer=ctx.batch.packer)
        return y

    def backward_input(self, dy: Any, ctx: Context) -> Any:
        ctx.save(dy=dy)
        if not ctx.needs_dx:
            return None
        gradients = []
        for gradient, (weight, _) in zip(dy, self._parts(self.params), strict=True):
            dx = ctx.take((*gradient.shape[:-1], weight.shape[1]), gradient.dtype)
            matmul(as_matrix(gradient), weight, as_matrix(dx), packer=ctx.batch.packer)
            gradients.append(dx)
        return tuple(gradients)

    def backward_weight(self, ctx: Context) -> None:
        pairs = zip(ctx.saved["x"], ctx.saved["dy"], strict=True)
        for (x, dy), (weight, bias) in zip(pairs, self._parts(self.grads), strict=True):
            matmul(as_matrix(dy), as_matrix(x), weight, trans_a=True, accumulate=True)
            add_row_sums(as_matrix(dy), bias)
        ctx.drop("x", "dy")
