"""Layers made of layers."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Self

import numpy as np

from hpdl_mpi.kernels.recording import replayed
from hpdl_mpi.nn.context import Context, join
from hpdl_mpi.nn.layer import Layer, Shape, has_parameters, walk
from hpdl_mpi.nn.members import Passing, read_shape, shape_after


class Container(Layer):
    """Holds named layers; weight gradients are its layers'.

    Parameters
    ----------
    layers : iterable of (str, Layer)
        In the order in which they run. A name that begins with "#" tells a layer from others, and is no part of the
        paths of what is in it.

    Raises
    ------
    InputError
        Two layers have one name, or something is no layer.
    """

    def __init__(self, layers: Iterable[tuple[str, Layer]]) -> None:
        pairs = list(layers)
        self._layers = dict(pairs)
        if len(self._layers) < len(pairs):
            raise self.refuse("two layers have one name", found=[name for name, _ in pairs], expected="unique names")
        for name, layer in pairs:
            if not isinstance(layer, Layer):
                raise self.refuse(
                    f"what is called {name!r} is no layer",
                    found=layer,
                    expected="a Layer",
                    remedy="call the class of a layer, ReLU(), and unpack a list of them, *layers",
                )
        self._learns: dict[str, bool] = {}
        self.reads = max((layer.reads for _, layer in pairs), default=1)
        self.reads_tokens = bool(pairs) and pairs[0][1].reads_tokens

    @property
    def children(self) -> dict[str, Layer]:
        return self._layers

    def input_shapes(self, input_shape: Shape) -> list[Shape]:
        """Return the shape of what each layer inside reads; here all read the container's own input."""
        return [read_shape(layer, input_shape) for layer in self._layers.values()]

    def _build_child(self, name: str, input_shape: Shape) -> Shape:
        """Build a layer for what it reads of inputs of this shape; return the shape of what comes after it."""
        child = self._layers[name]
        child.path = join(self.path, name)
        child.build(read_shape(child, input_shape))
        self._learns[name] = has_parameters(child)
        return shape_after(child, input_shape)

    def operations(self, input_shape: Shape) -> int:
        shapes = self.input_shapes(input_shape)
        return sum(layer.operations(shape) for layer, shape in zip(self._layers.values(), shapes, strict=True))

    def _contexts(self, ctx: Context) -> list[tuple[Layer, Context]]:
        """Pair each layer with its context; here all layers read the container's own input."""
        return [(layer, self._child(name, ctx, ctx.needs_dx)) for name, layer in self._layers.items()]

    def _child(self, name: str, ctx: Context, needs_dx: bool) -> Context:
        needs_backward = ctx.needs_backward and (needs_dx or self._learns[name])
        return ctx.child(name, needs_dx=needs_dx, needs_backward=needs_backward)

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray | None:
        return self._backward(dy, ctx, "backward_input")

    def backward(self, dy: np.ndarray, ctx: Context) -> np.ndarray | None:
        return self._backward(dy, ctx, "backward")

    @abc.abstractmethod
    def _backward(self, dy: np.ndarray, ctx: Context, half: str) -> np.ndarray | None:
        """Call the method named `half` of each layer that backward comes to; return dx."""

    def backward_weight(self, ctx: Context) -> None:
        for layer, child in reversed(self._contexts(ctx)):
            if child.needs_backward:
                layer.backward_weight(child)
                replayed(_tell_landed, layer, child)

    @staticmethod
    def _differentiate(layer: Layer, dy: np.ndarray | None, child: Context, half: str) -> Any:
        """Call the method named `half` of a layer inside."""
        dx = getattr(layer, half)(dy, child)
        if half == "backward":
            replayed(_tell_landed, layer, child)
        return dx


def _tell_landed(layer: Layer, ctx: Context) -> None:
    if ctx.batch.landed is not None:
        ctx.batch.landed(layer)


def numbered(layers: Iterable[Layer]) -> Iterator[tuple[str, Layer]]:
    """Pair layers with their names: "0", "1", ... in their order."""
    return ((str(i), layer) for i, layer in enumerate(layers))


class Sequential(Container):
    """Layers one after the other.

    Parameters
    ----------
    *layers : Layer
        Named "0", "1", ... in their order.
    **named : Layer
        Further layers, with names of their own.
    """

    replayable = True

    def __init__(self, *layers: Layer, **named: Layer) -> None:
        super().__init__([*numbered(layers), *named.items()])
        self._ties: dict[str, str] = {}
        self._passings: list[Passing] = []
        self.writes = self.reads  # all that comes in comes out again, from one layer or another

    def build(self, input_shape: Shape) -> None:
        self._passings.clear()
        for name, layer in self._layers.items():
            output_shape = self._build_child(name, input_shape)
            self._passings.append(Passing.of(layer, input_shape))
            input_shape = output_shape
        self.join_tied()

    def tie(self, name: str, to: str) -> Self:
        """Make two parameters one, as that of an embedding and that of the output layer; return the container.

        Both layers read the one, add their gradients to one, and it is saved once. They may end up on different ranks
        of a pipeline.

        Parameters
        ----------
        name : str
            The parameter that is given up, by its path in this container: ``head.weight``.
        to : str
            The one that stays, which says how it starts and whether it decays; not itself given up.
        """
        self._ties[name] = to
        return self

    def join_tied(self) -> None:
        """Let tied parameters be one, after the layers inside have declared theirs: `build` does so.

        Raises
        ------
        InputError
            There is no such parameter, or their shapes differ.
        """
        places = {
            join(layer.path, parameter.name): (layer, parameter.name)
            for layer in walk(self)
            for parameter in layer.declared.values()
        }
        for name, to in self._ties.items():
            for wanted in (name, to):
                if join(self.path, wanted) not in places:
                    raise self.refuse("no such parameter to tie", found=wanted, expected=" or ".join(sorted(places)))
            (layer, local), (other, theirs) = (places[join(self.path, wanted)] for wanted in (name, to))
            given, kept = layer.declared[local], other.declared[theirs]
            if given.shape != kept.shape or kept.tied or to == name:
                raise self.refuse(
                    f"{name} and {to} cannot be one",
                    found=f"shapes {given.shape} and {kept.shape}",
                    expected="two parameters of one shape, the second not tied to another",
                )
            layer.declared[local] = replace(kept, name=local, tied=join(self.path, to), images=given.images)

    def output_shape(self, input_shape: Shape) -> Shape:
        for layer in self._layers.values():
            input_shape = shape_after(layer, input_shape)
        return input_shape

    def input_shapes(self, input_shape: Shape) -> list[Shape]:
        shapes = []
        for layer in self._layers.values():
            shapes.append(read_shape(layer, input_shape))
            input_shape = shape_after(layer, input_shape)
        return shapes

    def _contexts(self, ctx: Context) -> list[tuple[Layer, Context]]:
        """Pair each layer with its context; nothing before the first parameter wants a gradient, unless asked."""
        pairs, wanted = [], ctx.needs_dx
        for name, layer in self._layers.items():
            pairs.append((layer, self._child(name, ctx, wanted)))
            wanted = wanted or self._learns[name]
        return pairs

    @property
    def adds(self) -> bool:
        layers = list(self._layers.values())
        return bool(layers) and layers[-1].adds

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        ctx.retain(x)
        pairs = self._contexts(ctx)
        if self.adds:
            pairs[-1][1].addend = ctx.addend
        for (layer, child), passing in zip(pairs, self._passings, strict=True):
            child.donated = layer.in_place
            y = layer.forward(passing.read(x), child)
            x = passing.after(x, y, ctx)
        return x

    def _backward(self, dy: np.ndarray, ctx: Context, half: str) -> np.ndarray | None:
        ctx.retain(dy)
        gradient: np.ndarray | None = dy
        for (layer, child), passing in zip(reversed(self._contexts(ctx)), reversed(self._passings), strict=True):
            if not child.needs_backward:
                ctx.release(gradient)
                return None
            child.donated = layer.in_place
            dx = self._differentiate(layer, passing.result_gradient(gradient), child, half)
            gradient = passing.before(gradient, dx, ctx)
        return gradient


class Recompute(Container):
    """Keeps nothing of a layer but its input, and runs it forward once more when backward comes.

    Less memory for a third more work: Chen et al., "Training deep nets with sublinear memory cost" (2016). The second
    run has the same random keys, so gradients are the same to the bit. The names inside stay what they were.
    """

    replayable = True

    def __init__(self, layer: Layer) -> None:
        super().__init__([("", layer)])
        self.writes = layer.writes

    @property
    def inner(self) -> Layer:
        """The layer."""
        return self._layers[""]

    def build(self, input_shape: Shape) -> None:
        self._build_child("", input_shape)

    def output_shape(self, input_shape: Shape) -> Shape:
        return self.inner.output_shape(input_shape)

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        saving, ctx.batch.saving = ctx.batch.saving, False
        y = self.inner.forward(x, self._child("", ctx, ctx.needs_dx))
        ctx.batch.saving = saving
        ctx.save(x=x)
        return y

    def _backward(self, dy: np.ndarray, ctx: Context, half: str) -> np.ndarray | None:
        child = self._child("", ctx, ctx.needs_dx)
        if not child.needs_backward:
            ctx.drop("x")
            return None
        ctx.batch.recomputing = True
        ctx.release(self.inner.forward(ctx.saved["x"], child))
        ctx.batch.recomputing = False
        ctx.drop("x")
        return self._differentiate(self.inner, dy, child, half)


def leaves(layer: Layer, input_shape: Shape) -> Iterator[tuple[Layer, Shape]]:
    """Yield the layers inside that hold no others, with the shapes of their inputs, in the order in which they run."""
    if not isinstance(layer, Container):
        yield layer, input_shape
        return
    for child, shape in zip(layer.children.values(), layer.input_shapes(input_shape), strict=True):
        yield from leaves(child, shape)
