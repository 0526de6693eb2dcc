"""Layers that change nothing but shapes, or which arrays an activation consists of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hpdl_mpi.base.errors import is_integer
from hpdl_mpi.nn.context import Context
from hpdl_mpi.nn.flat import FlatShape
from hpdl_mpi.nn.layer import Layer, Shape
from hpdl_mpi.nn.members import joined_members, member_shapes, members


class Flatten(Layer):
    """Each sample becomes one row, in C order: an image (h, w, c) gives h w c features, channels fastest."""

    replayable = True

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


class Members(Layer):
    """Gives the arrays of an activation another order, and leaves some of them out.

    ``Members(1, 0)`` exchanges two; ``Members(0)`` keeps the first alone.

    Parameters
    ----------
    *order : int
        The numbers of those that stay, each once.
    """

    replayable = True
    reads = writes = 2**30  # all of them

    def __init__(self, *order: int) -> None:
        if not order or len(set(order)) < len(order) or not all(is_integer(number, 0) for number in order):
            raise self.refuse("needs the numbers of arrays", found=order, expected="different numbers from 0 on")
        self._order = order
        self._count = max(order) + 1

    def build(self, input_shape: Shape) -> None:
        self._count = len(member_shapes(input_shape))
        if max(self._order) >= self._count:
            found = f"{self._order} of {self._count}"
            raise self.refuse("there are not so many arrays", found=found, expected=f"0 to {self._count - 1}")

    def output_shape(self, input_shape: Shape) -> Shape:
        shapes = member_shapes(input_shape)
        return joined_members(tuple(shapes[number] for number in self._order))

    def forward(self, x: Any, ctx: Context) -> Any:
        y = joined_members(tuple(members(x)[number] for number in self._order))
        ctx.retain(y)
        return y

    def backward_input(self, dy: Any, ctx: Context) -> Any:
        gradients = dict(zip(self._order, members(dy), strict=True))
        ctx.retain(dy)
        return joined_members(tuple(gradients.get(number) for number in range(self._count)))
