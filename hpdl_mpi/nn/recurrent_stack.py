"""Recurrent layers of any cell on top of each other; `nn.recurrent` says what they do."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from hpdl_mpi.base.errors import is_number
from hpdl_mpi.kernels import random
from hpdl_mpi.nn.context import Context
from hpdl_mpi.nn.init import Uniform
from hpdl_mpi.nn.layer import Layer, require_count, require_flag
from hpdl_mpi.nn.members import joined_members, member_shapes, members
from hpdl_mpi.nn.recurrent_passes import Cell, Kept, Pass


class _Members(NamedTuple):
    """The parts of an activation, or of its shape, and how many it has."""

    x: Any
    mask: Any
    states: tuple[Any, ...]
    number: int


def _join(x: Any, mask: Any, states: tuple[Any, ...]) -> Any:
    """Return parts as an activation, or as the shape of one."""
    return joined_members((x, *(() if mask is None else (mask,)), *states))


class Recurrent(Layer):
    """Layers of a cell on top of each other; for the parameters, see `RNN`."""

    _cell: Cell

    def __init__(
        self,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bidirectional: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        carry: bool = False,
    ) -> None:
        if not (is_number(dropout) and 0 <= dropout < 1):
            raise self.refuse("dropout out of range", found=repr(dropout), expected="at least 0 and below 1")
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bidirectional = require_flag(self, bidirectional, "bidirectional")
        self.dropout = dropout
        self.bias = require_flag(self, bias, "bias")
        self.carry = require_flag(self, carry, "carry")
        self.reads = self.writes = 2 + len(self._state_shapes)

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def _width(self) -> int:
        return self._directions * self.hidden_size

    @property
    def _state_shapes(self) -> tuple[tuple[int, int], ...]:
        """The shapes of the states that are carried on."""
        shape = self.num_layers * self._directions, self.hidden_size
        return (shape,) * self._cell.state if self.carry else ()

    def _passes(self, layer: int) -> list[Pass]:
        """Return the directions of a layer."""
        size = self.hidden_size
        both = [
            Pass(f"l{layer}", self._cell, size, reverse=False, first=0),
            Pass(f"l{layer}_reverse", self._cell, size, reverse=True, first=size),
        ]
        return both[: self._directions]

    def build(self, input_shape: Any) -> None:
        self.hidden_size = require_count(self, self.hidden_size, "state")
        self.num_layers = require_count(self, self.num_layers, "layer")
        _, features = self._split(input_shape).x
        bound = 1 / math.sqrt(self.hidden_size)
        for layer in range(self.num_layers):
            for one in self._passes(layer):
                for name, shape in one.shapes(features, bias=self.bias).items():
                    self.declare(name, shape, Uniform(-bound, bound), (features, self.hidden_size))
            features = self._width

    def output_shape(self, input_shape: Any) -> Any:
        parts = self._split(input_shape)
        return _join((parts.x[0], self._width), parts.mask, self._state_shapes)

    def operations(self, input_shape: Any) -> int:
        steps, features = self._split(input_shape).x
        terms = features + (self.num_layers - 1) * self._width + self.num_layers * self.hidden_size
        return 2 * steps * terms * self._cell.products * self._width

    def forward(self, x: Any, ctx: Context) -> Any:
        current, mask, states, count = self._members(x)
        n, steps, _ = current.shape
        present = ctx.take((n, 0), current.dtype) if mask is None else mask
        last = tuple(ctx.take((n, *shape), current.dtype) for shape in self._state_shapes)
        ctx.save(mask=present, count=count)
        ctx.retain(current)
        for layer in range(self.num_layers):
            current = self._drop(current, layer, ctx)
            y = ctx.take((n, steps, self._width), current.dtype)
            for number, one in enumerate(self._passes(layer), layer * self._directions):
                state = self._take_state(states, number, current, ctx)
                self._go_on(one, state, ctx)
                kept = one.forward(self.params, current, present, state, y, ctx)
                ctx.save(**{one.name: tuple(kept)})
                ctx.release((kept.gates, kept.before))
                for values, part in zip(last, self._parts(state), strict=False):
                    values[:, number] = part
                if ctx.remembers:
                    ctx.remember(one.name, state)
                ctx.release(state)
            ctx.release(current)
            current = y
        if mask is None:
            ctx.release(present)
        else:
            ctx.retain(mask)  # it is handed on
        return _join(current, mask, last)

    def backward_input(self, dy: Any, ctx: Context) -> Any:
        mask, count = ctx.saved["mask"], ctx.saved["count"]
        gradient, *others = members(dy)
        dlast = tuple(others[len(others) - len(self._state_shapes) :])
        ctx.retain(gradient)
        for layer in reversed(range(self.num_layers)):
            passes = self._passes(layer)
            x = ctx.saved[passes[0].name][0]
            dx = ctx.take(x.shape, x.dtype) if layer > 0 or ctx.needs_dx else None
            for number, one in enumerate(passes, layer * self._directions):
                dstate = self._take_state(dlast, number, x, ctx)
                one.backward_input(self.params, gradient, mask, Kept(*ctx.saved[one.name]), dstate, dx, ctx)
                ctx.release(dstate)
            ctx.release(gradient)
            gradient = None if dx is None else self._drop(dx, layer, ctx)
        ctx.drop("mask", "count")
        return None if gradient is None else joined_members((gradient, *[None] * (count - 1)))

    def backward_weight(self, ctx: Context) -> None:
        for layer in reversed(range(self.num_layers)):
            for one in self._passes(layer):
                one.backward_weight(self.grads, Kept(*ctx.saved[one.name]), ctx)
                ctx.drop(one.name)

    def _drop(self, x: np.ndarray, layer: int, ctx: Context) -> np.ndarray:
        """Return what dropout in front of a layer leaves of an array, which is let go of; all, of the first one."""
        if layer == 0 or not ctx.training or self.dropout == 0:
            return x
        y = ctx.take(x.shape, x.dtype)
        rows = (len(x), math.prod(x.shape[1:]))
        key = ctx.child(f"dropout_l{layer}").key
        random.dropout(x.reshape(rows), key, ctx.batch.sample_ids, self.dropout, y.reshape(rows))
        ctx.release(x)
        return y

    def _go_on(self, one: Pass, state: np.ndarray, ctx: Context) -> None:
        """Let a sequence that comes in pieces begin with the state in which its last piece has left the layer."""
        if ctx.remembers and self._directions > 1:
            raise self.refuse(
                "cannot take a sequence in pieces",
                found="a layer that looks at later steps",
                expected="one direction alone",
            )
        before = ctx.recall(one.name)
        if before is not None:
            state[...] = before

    def _take_state(
        self, states: tuple[np.ndarray | None, ...], number: int, x: np.ndarray, ctx: Context
    ) -> np.ndarray:
        """Return the state of a direction of a layer, all parts in one; zeros where they are not given."""
        state = ctx.take((len(x), self._cell.state * self.hidden_size), x.dtype)
        state.fill(0)
        for part, given in zip(self._parts(state), states, strict=False):
            if given is not None:
                part[...] = given[:, number]
        return state

    def _parts(self, state: np.ndarray) -> list[np.ndarray]:
        """Return views of the parts of a state."""
        size = self.hidden_size
        return [state[:, start : start + size] for start in range(0, state.shape[1], size)]

    def _split(self, shape: Any) -> _Members:
        """Return the parts of a shape: of a sample, or of the samples in a tuple of arrays."""
        x, *others = shapes = member_shapes(shape)
        mask = others.pop(0) if others and len(others[0]) == 1 else None
        states = tuple(others)
        sequences = len(x) == 2 and x[1] > 0 and mask in (None, x[:1])
        if not sequences or states not in ((), self._state_shapes):
            wanted = ", ".join(str(part) for part in ("(steps,)", *self._state_shapes))
            raise self.refuse(
                "takes sequences",
                found=f"samples of shape {shape}",
                expected=f"(steps, features), or a tuple of that and a mask{' or states' * self.carry}: {wanted}",
            )
        return _Members(x, mask, states, len(shapes))

    def _members(self, x: Any) -> _Members:
        """Return the parts of an activation."""
        arrays = members(x)
        shapes = self._split(tuple(array.shape[1:] for array in arrays))
        mask = None if shapes.mask is None else arrays[1]
        return _Members(arrays[0], mask, arrays[len(arrays) - len(shapes.states) :], len(arrays))
