"""Layers whose branches read the same input, and whose outputs are added or joined; or each an array of its own."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from hpdl_mpi.kernels.activation import clip_backward
from hpdl_mpi.kernels.elementwise import add_clipped, copy_columns
from hpdl_mpi.nn.activations import Clipping, clipping_limits
from hpdl_mpi.nn.containers import Container, numbered
from hpdl_mpi.nn.context import Addend, Context
from hpdl_mpi.nn.flat import images_in, joined
from hpdl_mpi.nn.layer import Layer, Shape
from hpdl_mpi.nn.members import add_to, joined_members, member_shapes, members, shape_after, take_for_sum


class Residual(Container):
    """y = body(x) + shortcut(x), the shortcut being the identity unless given (He et al., 2016).

    Of an activation of several arrays it is the first that goes by the shortcut, and that of the body's result that is
    added to it; the body reads as many as it likes.

    Parameters
    ----------
    body : Layer
    shortcut : Layer, optional
    activation : {None, "relu", "relu6"}
        Also do what a `ReLU` or `ReLU6` behind it would: one pass over memory less.
    names : (str, str)
        Of body and shortcut; what has no name has the container's.
    """

    replayable = True

    def __init__(
        self,
        body: Layer,
        shortcut: Layer | None = None,
        *,
        activation: Clipping | None = None,
        names: tuple[str, str] = ("body", "shortcut"),
    ) -> None:
        pair = isinstance(names, list | tuple) and len(names) == 2
        if not (pair and all(isinstance(name, str) for name in names)):
            raise self.refuse("needs two names", found=repr(names), expected="those of body and shortcut")
        super().__init__(zip(names, [body] if shortcut is None else [body, shortcut], strict=False))
        self._results = 1
        self._clips = activation is not None
        self._limits = clipping_limits(self, activation)

    def build(self, input_shape: Shape) -> None:
        results = [member_shapes(self._build_child(name, input_shape)) for name in self._layers]
        self._results = len(results[0])
        shapes = [result[0] for result in results]
        skipped = shapes[1] if len(shapes) > 1 else member_shapes(input_shape)[0]
        if shapes[0] != skipped:
            raise self.refuse(
                "body and shortcut do not add up", found=f"{shapes[0]} and {skipped}", expected="equal shapes"
            )
        # A sum of flattened images with other features has neither's order.
        self.portable = images_in(shapes[0]) == images_in(skipped)

    def output_shape(self, input_shape: Shape) -> Shape:
        body = next(iter(self._layers.values()))
        return member_shapes(shape_after(body, input_shape))[0]

    def forward(self, x: Any, ctx: Context) -> np.ndarray:
        (body, inner), *shortcut = self._contexts(ctx)
        first = members(x)[0]
        skipped = [layer.forward(first, child) for layer, child in shortcut]
        term = skipped[0] if skipped else first
        if body.adds:
            inner.addend = Addend(term, self._limits)
        result, *rest = members(body.forward(x, inner))
        ctx.release(tuple(rest))
        if body.adds:
            y = result
        else:
            y = take_for_sum(result, ctx)
            add_clipped(result.reshape(-1), term.reshape(-1), *self._limits, y.reshape(-1))
            ctx.release(result)
        for result in skipped:
            ctx.release(result)
        if self._clips:
            ctx.save(y=y)
        return y

    def _backward(self, dy: np.ndarray, ctx: Context, half: str) -> np.ndarray | None:
        if self._clips:
            passed = ctx.take(dy.shape, dy.dtype)
            clip_backward(dy.reshape(-1), ctx.saved["y"].reshape(-1), *self._limits, passed.reshape(-1))
            ctx.drop("y")
        else:
            passed = dy
            ctx.retain(passed)
        (body, inner), *shortcut = self._contexts(ctx)
        skipped = [self._differentiate(layer, passed, child, half) for layer, child in shortcut if child.needs_backward]
        handed = (None,) * (self._results - 1)  # of the body's result, what is not added
        dx = None
        if inner.needs_backward:
            dx = self._differentiate(body, joined_members((passed, *handed)), inner, half)
        if not ctx.needs_dx:
            ctx.release(passed)
            return None
        other = skipped[0] if skipped else passed
        if not skipped:
            ctx.retain(passed)
        ctx.release(passed)
        first, *rest = members(dx)
        return joined_members((add_to(first, other, ctx), *rest))


class Parallel(Container):
    """Branches that read the same input; their outputs are joined along the last dimension (channels).

    Szegedy et al., "Going deeper with convolutions" (2015).
    """

    replayable = True

    def __init__(self, *branches: Layer, **named: Layer) -> None:
        super().__init__([*numbered(branches), *named.items()])
        self._widths: list[int] = []

    def build(self, input_shape: Shape) -> None:
        shapes = [self._build_child(name, input_shape) for name in self._layers]
        if len({shape[:-1] for shape in shapes}) != 1:
            raise self.refuse(
                "branches cannot be joined", found=shapes, expected="shapes that differ in the last dimension only"
            )
        self._widths = [shape[-1] for shape in shapes]

    def output_shape(self, input_shape: Shape) -> Shape:
        return joined([layer.output_shape(input_shape) for layer in self._layers.values()])

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        outputs = [layer.forward(x, child) for layer, child in self._contexts(ctx)]
        y = ctx.take((*outputs[0].shape[:-1], sum(self._widths)), outputs[0].dtype)
        for output, columns in zip(outputs, self._split(y), strict=True):
            copy_columns(output.reshape(-1, output.shape[-1]), columns)
            ctx.release(output)
        return y

    def _backward(self, dy: np.ndarray, ctx: Context, half: str) -> np.ndarray | None:
        total: np.ndarray | None = None
        for (layer, child), columns in zip(reversed(self._contexts(ctx)), reversed(self._split(dy)), strict=True):
            if not child.needs_backward:
                continue
            part = ctx.take((*dy.shape[:-1], columns.shape[-1]), dy.dtype)
            copy_columns(columns, part.reshape(columns.shape))
            dx = self._differentiate(layer, part, child, half)
            ctx.release(part)
            total = add_to(total, dx, ctx)
        return total

    def _split(self, joined: np.ndarray) -> list[np.ndarray]:
        """Return each branch's columns of a joined output, as views."""
        ends = list(accumulate(self._widths, initial=0))
        matrix = joined.reshape(-1, ends[-1])
        return [matrix[:, start:stop] for start, stop in pairwise(ends)]


class Each(Container):
    """Each array of an activation goes through a layer of its own; the results follow one another.

    There are as many layers as arrays, and they may make several of one: of the tokens of two texts come the vectors of
    the first, their mask, and the vectors of the second.
    """

    replayable = True

    def __init__(self, *layers: Layer, **named: Layer) -> None:
        super().__init__([*numbered(layers), *named.items()])
        self.reads = self.writes = len(self._layers)
        self._results: list[int] = []

    def build(self, input_shape: Shape) -> None:
        shapes = member_shapes(input_shape)
        if len(shapes) != len(self._layers):
            raise self.refuse(
                "there is not a layer for each array",
                found=f"samples of shape {input_shape}",
                expected=f"{len(self._layers)} arrays, for {', '.join(self._layers)}",
            )
        results = [self._build_child(name, shape) for name, shape in zip(self._layers, shapes, strict=True)]
        self._results = [len(member_shapes(result)) for result in results]

    def input_shapes(self, input_shape: Shape) -> list[Shape]:
        return list(member_shapes(input_shape))

    def output_shape(self, input_shape: Shape) -> Shape:
        pairs = zip(self._layers.values(), member_shapes(input_shape), strict=True)
        return joined_members(tuple(shape for layer, own in pairs for shape in member_shapes(shape_after(layer, own))))

    def forward(self, x: Any, ctx: Context) -> Any:
        pairs = zip(self._contexts(ctx), members(x), strict=True)
        return joined_members(
            tuple(array for (layer, child), own in pairs for array in members(layer.forward(own, child)))
        )

    def _backward(self, dy: Any, ctx: Context, half: str) -> Any:
        bounds = list(pairwise(accumulate(self._results, initial=0)))
        gradients: list[np.ndarray | None] = []
        for (layer, child), bound in zip(reversed(self._contexts(ctx)), reversed(bounds), strict=True):
            part = joined_members(members(dy)[slice(*bound)])
            gradients.append(self._differentiate(layer, part, child, half) if child.needs_backward else None)
        return joined_members(tuple(reversed(gradients))) if ctx.needs_dx else None
