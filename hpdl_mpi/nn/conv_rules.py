"""Which method of convolution a layer takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from hpdl_mpi.kernels import grouped
from hpdl_mpi.kernels.elementwise import copy_columns
from hpdl_mpi.kernels.gemm import as_matrix
from hpdl_mpi.nn.context import Context
from hpdl_mpi.nn.conv_methods import ConvShape, Depthwise, Method, Pointwise, Unfolded, Winograd

_LEAST_CHANNELS = 8
"""On both sides, for Winograd's method: its transforms work on vectors of channels."""

_WIDE_CHANNELS = 16
"""On both sides of groups that go together, if there are as many."""

_WORTHWHILE = 0.6
"""Products that Winograd's method may take, of those of the definition, to be worth its transforms."""


def choose(shape: ConvShape) -> Method:
    """Return the method that a layer of a shape takes: that of the first rule that holds."""
    return next(rule.method(shape) for rule in RULES if rule.holds(shape))


class Grouped(Method):
    """Some groups of channels after others, each set of groups by the method for its shape.

    Groups of few channels go together, with kernels that are zero where the others' channels are: products of wide
    matrices are so much faster that they may well multiply zeros. The price is that a NaN in one of these groups
    reaches all of them; `exact` convolutions take one group at a time.
    """

    name = "grouped"

    def __init__(self, shape: ConvShape) -> None:
        super().__init__(shape)
        k, height, width, channels = shape.weight
        size = min(k // shape.groups, channels)
        self._together = 1 if shape.exact else _least_divisor(shape.groups, _WIDE_CHANNELS / size)
        self._sets = shape.groups // self._together
        one = replace(shape, weight=(k // self._sets, height, width, channels * self._together), groups=1)
        self._method = choose(one)
        # Products of matrices take rows that lie apart.
        self._copies = self._sets > 1 and not (isinstance(self._method, Pointwise) and shape.stride == (1, 1))

    @classmethod
    def can(cls, shape: ConvShape) -> bool:
        return shape.groups > 1

    def forward(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, y: np.ndarray, ctx: Context) -> None:
        kernels = self._joined(weight, ctx)
        for number in range(self._sets):
            part_x, part_y = self._part_of(x, number, ctx), self._room(y, number, ctx)
            part_bias = bias[self._channels(bias, number)] if bias.size else bias
            self._method.forward(part_x, self._kernels(kernels, number), part_bias, part_y, ctx)
            self._put(part_y, y, number, ctx)
            ctx.release(part_x)
        ctx.release(kernels)

    def backward_input(self, dy: np.ndarray, weight: np.ndarray, dx: np.ndarray, ctx: Context) -> None:
        kernels = self._joined(weight, ctx)
        for number in range(self._sets):
            part_dy, part_dx = self._part_of(dy, number, ctx), self._room(dx, number, ctx)
            self._method.backward_input(part_dy, self._kernels(kernels, number), part_dx, ctx)
            self._put(part_dx, dx, number, ctx)
            ctx.release(part_dy)
        ctx.release(kernels)

    def backward_weight(self, x: np.ndarray, dy: np.ndarray, dweight: np.ndarray, ctx: Context) -> None:
        if self._together > 1:
            kernels = ctx.take(self._joined_shape, dweight.dtype)
            kernels.fill(0)
        else:
            kernels = dweight
            ctx.retain(kernels)
        for number in range(self._sets):
            part_x, part_dy = self._part_of(x, number, ctx), self._part_of(dy, number, ctx)
            self._method.backward_weight(part_x, part_dy, self._kernels(kernels, number), ctx)
            ctx.release(part_x)
            ctx.release(part_dy)
        if self._together > 1:
            grouped.add_own(kernels, self.shape.groups, self._together, dweight)
        ctx.release(kernels)

    @property
    def _joined_shape(self) -> tuple[int, ...]:
        *kernels, channels = self.shape.weight
        return *kernels, channels * self._together

    def _joined(self, weight: np.ndarray, ctx: Context) -> np.ndarray:
        """Return kernels over all channels of groups that go together; the caller releases them."""
        if self._together == 1:
            ctx.retain(weight)
            return weight
        kernels = ctx.take(self._joined_shape, weight.dtype)
        grouped.join(weight, self.shape.groups, self._together, kernels)
        return kernels

    def _channels(self, array: np.ndarray, number: int) -> slice:
        """Return a set's part of the last dimension."""
        size = array.shape[-1] // self._sets
        return slice(number * size, (number + 1) * size)

    def _kernels(self, weight: np.ndarray, number: int) -> np.ndarray:
        size = len(weight) // self._sets
        return weight[number * size : (number + 1) * size]

    def _part_of(self, image: np.ndarray, number: int, ctx: Context) -> np.ndarray:
        """Return a set's channels, as a copy where the method wants one; the caller releases it."""
        part = self._room(image, number, ctx)
        if self._copies:
            copy_columns(as_matrix(image)[:, self._channels(image, number)], as_matrix(part))
        return part

    def _room(self, image: np.ndarray, number: int, ctx: Context) -> np.ndarray:
        """Return where a set's channels stand while they are computed."""
        if self._copies:
            return ctx.take((*image.shape[:-1], image.shape[-1] // self._sets), image.dtype)
        ctx.retain(image)
        return image[..., self._channels(image, number)]

    def _put(self, part: np.ndarray, image: np.ndarray, number: int, ctx: Context) -> None:
        """Let channels be in their place in the image, and let go of the part."""
        if self._copies:
            copy_columns(as_matrix(part), as_matrix(image)[:, self._channels(image, number)])
        ctx.release(part)


def _least_divisor(number: int, least: float) -> int:
    """Return the smallest divisor that is not less than this, or the number itself."""
    return next((divisor for divisor in range(1, number) if number % divisor == 0 and divisor >= least), number)


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
    Rule(
        Grouped,
        f"there are several groups: each by the rule for its shape, those of less than {_WIDE_CHANNELS} channels "
        "several at once",
        Grouped.can,
    ),
)
"""The first that holds decides; `hpdl bench conv` shows whether it is right."""
