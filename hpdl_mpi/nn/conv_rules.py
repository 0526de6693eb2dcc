"""Which method of convolution a layer takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from hpdl_mpi.kernels.elementwise import copy_columns
from hpdl_mpi.nn.context import Context
from hpdl_mpi.nn.conv_methods import ConvShape, Depthwise, Method, Pointwise, Unfolded, Winograd, as_matrix

_LEAST_CHANNELS = 8
"""On both sides, for Winograd's method: its transforms work on vectors of channels."""

_WORTHWHILE = 0.6
"""Products that Winograd's method may take, of those of the definition, to be worth its transforms."""


def choose(shape: ConvShape) -> Method:
    """Return the method that a layer of a shape takes: that of the first rule that holds."""
    return next(rule.method(shape) for rule in RULES if rule.holds(shape))


class Grouped(Method):
    """Groups of channels one after another, each by the method for its shape."""

    name = "grouped"

    def __init__(self, shape: ConvShape) -> None:
        super().__init__(shape)
        k, height, width, channels = shape.weight
        one = replace(shape, weight=(k // shape.groups, height, width, channels), groups=1)
        self._method = choose(one)

    @classmethod
    def can(cls, shape: ConvShape) -> bool:
        return shape.groups > 1

    def forward(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, y: np.ndarray, ctx: Context) -> None:
        for group in range(self.shape.groups):
            part_x, part_y = self._copy(x, group, ctx), self._room(y, ctx)
            part_bias = bias[self._channels(bias, group)] if bias.size else bias
            self._method.forward(part_x, self._kernels(weight, group), part_bias, part_y, ctx)
            self._put(part_y, y, group, ctx)
            ctx.release(part_x)

    def backward_input(self, dy: np.ndarray, weight: np.ndarray, dx: np.ndarray, ctx: Context) -> None:
        for group in range(self.shape.groups):
            part_dy, part_dx = self._copy(dy, group, ctx), self._room(dx, ctx)
            self._method.backward_input(part_dy, self._kernels(weight, group), part_dx, ctx)
            self._put(part_dx, dx, group, ctx)
            ctx.release(part_dy)

    def backward_weight(self, x: np.ndarray, dy: np.ndarray, dweight: np.ndarray, ctx: Context) -> None:
        for group in range(self.shape.groups):
            part_x, part_dy = self._copy(x, group, ctx), self._copy(dy, group, ctx)
            self._method.backward_weight(part_x, part_dy, self._kernels(dweight, group), ctx)
            ctx.release(part_x)
            ctx.release(part_dy)

    def _channels(self, array: np.ndarray, group: int) -> slice:
        """Return a group's part of the last dimension."""
        size = array.shape[-1] // self.shape.groups
        return slice(group * size, (group + 1) * size)

    def _kernels(self, weight: np.ndarray, group: int) -> np.ndarray:
        size = len(weight) // self.shape.groups
        return weight[group * size : (group + 1) * size]

    def _room(self, image: np.ndarray, ctx: Context) -> np.ndarray:
        return ctx.take((*image.shape[:-1], image.shape[-1] // self.shape.groups), image.dtype)

    def _copy(self, image: np.ndarray, group: int, ctx: Context) -> np.ndarray:
        part = self._room(image, ctx)
        copy_columns(as_matrix(image)[:, self._channels(image, group)], as_matrix(part))
        return part

    def _put(self, part: np.ndarray, image: np.ndarray, group: int, ctx: Context) -> None:
        copy_columns(as_matrix(part), as_matrix(image)[:, self._channels(image, group)])
        ctx.release(part)


class Rule(NamedTuple):
    """When a layer takes a method.

    Attributes
    ----------
    method : type of Method
    condition : str
        In words what `holds` tells of a shape.
    holds : callable
    """

    method: type[Method]
    condition: str
    holds: Callable[[ConvShape], bool]


def _winograd_pays(shape: ConvShape) -> bool:
    channels = min(shape.weight[0], shape.weight[3])
    return Winograd.can(shape) and channels >= _LEAST_CHANNELS and Winograd(shape).effort <= _WORTHWHILE


RULES = (
    Rule(Pointwise, "the kernel is 1 x 1, without padding, in one group", Pointwise.can),
    Rule(Depthwise, "every channel is a group, with one kernel", Depthwise.can),
    Rule(
        Winograd,
        "the kernel is 3 x 3 or 5 x 5 with stride 1, or 3 x 3 with stride 2 and padding 1, in one group; there are "
        f"{_LEAST_CHANNELS} channels or more on both sides; tiles save {1 - _WORTHWHILE:.0%} of the products or more; "
        "sums need not be exact",
        _winograd_pays,
    ),
    Rule(Unfolded, "there is one group", Unfolded.can),
    Rule(Grouped, "there are several groups: each by the rule for its shape", Grouped.can),
)
"""The first that holds decides; `hpdl bench conv` shows whether it is right."""
