"""Activations of several arrays, such as a decoder's input, its memory and the mask of that.

A layer reads the first ones, as many as its `reads` says, and its result, one array or several, replaces the first
ones, as many as its `writes` says; the others are handed on. So a layer that knows of one array works on the first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hpdl_mpi.kernels.elementwise import add
from hpdl_mpi.nn.context import Context

if TYPE_CHECKING:
    from hpdl_mpi.nn.layer import Layer, Shape


def members(activation: Any) -> tuple[Any, ...]:
    """Return the arrays that an activation consists of, or the gradients of them."""
    return activation if isinstance(activation, tuple) else (activation,)


def joined_members(parts: tuple[Any, ...]) -> Any:
    """Return the activation that consists of these: one array stands for itself."""
    return parts[0] if len(parts) == 1 else parts


def member_shapes(shape: Shape) -> tuple[Shape, ...]:
    """Return the shapes of the arrays that an activation of some shape consists of."""
    several = bool(shape) and isinstance(shape[0], tuple)
    return shape if several else (shape,)  # type: ignore[return-value]


def shape_after(layer: Layer, shape: Shape) -> Shape:
    """Return the shape of what a layer makes of an activation, with what it hands on."""
    shapes = member_shapes(shape)
    result = layer.output_shape(joined_members(shapes[: layer.reads]))
    return joined_members((*member_shapes(result), *shapes[layer.writes :]))


def read_shape(layer: Layer, shape: Shape) -> Shape:
    """Return the shape of what a layer reads of an activation."""
    return joined_members(member_shapes(shape)[: layer.reads])


class Passing(NamedTuple):
    """How a layer passes an activation of some number of members on.

    Attributes
    ----------
    total : int
        Members that come in.
    reads, writes : int
        How many of them the layer reads, and how many its result replaces.
    results : int
        Members of the result.
    """

    total: int
    reads: int
    writes: int
    results: int

    @classmethod
    def of(cls, layer: Layer, shape: Shape) -> Passing:
        """Return how a built layer passes on an activation of this shape."""
        total = len(member_shapes(shape))
        results = len(member_shapes(layer.output_shape(read_shape(layer, shape))))
        return cls(total, min(layer.reads, total), min(layer.writes, total), results)

    def read(self, x: Any) -> Any:
        """Return what the layer reads of an activation."""
        return x if self.total == 1 else joined_members(members(x)[: self.reads])

    def after(self, x: Any, y: Any, ctx: Context) -> Any:
        """Return what comes out where `x` came in and the layer made `y` of it; x is let go."""
        if self.total == 1:
            ctx.release(x)
            return y
        rest = members(x)[self.writes :]
        ctx.retain(rest)
        ctx.release(x)
        return joined_members((*members(y), *rest))

    def result_gradient(self, dy: Any) -> Any:
        """Return the gradient of the layer's result, of that of what comes out."""
        return dy if self.total == 1 else joined_members(members(dy)[: self.results])

    def before(self, dy: Any, dx: Any, ctx: Context) -> Any:
        """Return the gradient of what came in, of that of what came out and of what the layer read; dy is let go."""
        if self.total == 1:
            ctx.release(dy)
            return dx
        handed = members(dy)[self.results :]
        own = members(dx) if dx is not None else (None,) * self.reads
        gradients = []
        for i in range(self.total):
            passed = handed[i - self.writes] if i >= self.writes else None
            ctx.retain(passed)
            gradients.append(add_to(own[i], passed, ctx) if i < self.reads else passed)
        ctx.release(dy)
        return joined_members(tuple(gradients))


def take_for_sum(term: np.ndarray, ctx: Context) -> np.ndarray:
    """Return an array for the sum of a layer's result and another one: the result itself if nobody else holds it."""
    if ctx.holds_alone(term):
        ctx.retain(term)
        return term
    return ctx.take(term.shape, term.dtype)


def add_to(term: np.ndarray | None, other: np.ndarray | None, ctx: Context) -> np.ndarray | None:
    """Return the sum of two gradients, of which either may not exist, held once; both are let go."""
    if term is None or other is None:
        return other if term is None else term
    total = take_for_sum(term, ctx)
    add(term.reshape(-1), other.reshape(-1), total.reshape(-1))
    ctx.release(term)
    ctx.release(other)
    return total
