"""What each layer of a model costs on this machine: measured one layer at a time, so that the whole need not fit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from hpdl_mpi.nn import (
    Context,
    Layer,
    Layout,
    Loss,
    MicroBatch,
    Pool,
    Shape,
    has_parameters,
    joined_members,
    make_statistics,
    member_shapes,
    members,
    read_shape,
    shape_after,
    walk,
)
from hpdl_mpi.parallel.pipeline import LayerCost, Recomputed
from hpdl_mpi.parallel.pipeline.flow import Activation

_REPEATS = 5
"""Timed runs, after one that wakes everything; the fastest counts."""


@dataclass(frozen=True)
class Task:
    """What is to be trained.

    Attributes
    ----------
    model : Layer
        Plans build it, and leave it without parameters.
    input_shape : tuple of int
        Of one sample.
    loss : Loss
    dtype : dtype
    held : float
        What a rank keeps of its parameters, by their size: these, gradients, optimizer state, moving average.
    recompute : {"none", "stage", "block"}
    """

    model: Layer
    input_shape: Shape
    loss: Loss
    dtype: DTypeLike = "float32"
    held: float = 2
    recompute: Recomputed = "none"


def measure_layers(task: Task, layers: dict[str, Layer], size: int) -> list[LayerCost]:
    """Return what each of the layers that a model can be cut between costs with a micro-batch of noise. Local.

    Each layer gets parameters of its own, which go when it is measured; the loss counts with the last layer. Layers
    that are alike are measured once, so that noise does not tell them apart.

    Parameters
    ----------
    task : Task
    layers : dict of str to Layer
        Of its model, which is built.
    size : int
        Samples of the micro-batch.
    """
    costs: list[LayerCost] = []
    measured: dict[Any, _Measurement] = {}
    shape, dtype = task.input_shape, np.dtype(task.dtype)
    kept, from_loader, needs_dx = False, True, False  # samples want no gradient
    for number, (name, layer) in enumerate(layers.items()):
        last = number + 1 == len(layers)
        read = read_shape(layer, shape)
        kind = _kind(layer), read, last, needs_dx
        if kind not in measured:
            measured[kind] = _Measurement(
                layer, name, read, size, dtype, task.loss if last else None, needs_dx=needs_dx
            )
            for inner in walk(layer):
                inner.params.clear()
                inner.grads.clear()
                inner.statistics.clear()
        found = measured[kind]
        handed = sum(math.prod(sample) for sample in member_shapes(shape)[layer.reads :]) * size * dtype.itemsize
        costs.append(found.cost(task.held, kept or from_loader, from_loader, handed))
        shape, kept = shape_after(layer, shape), found.keeps_output or (found.is_view and kept)
        from_loader = from_loader and found.is_view
        needs_dx = needs_dx or has_parameters(layer)
    return costs


def _kind(layer: Layer) -> Any:
    """Return what two layers that do the same work have in common."""
    shapes = [parameter.shape for parameter in layer.declared.values()]
    plain = bool | int | float | str | tuple | list | Callable
    settings = {key: repr(value) for key, value in vars(layer).items() if isinstance(value, plain) and key != "path"}
    children = tuple(_kind(child) for child in layer.children.values())
    return type(layer), tuple(shapes), tuple(sorted(settings.items())), children


def zero_targets(loss: Loss, output_shape: Shape, size: int, dtype: DTypeLike) -> np.ndarray:
    """Return targets that a loss can take: class 0 for each sample, or zeros like the outputs."""
    if loss.task == "classification":
        return np.zeros((size, *output_shape[:-1]), np.int64)
    return np.zeros((size, *output_shape), dtype)


def zero_inputs(model: Layer, input_shape: Shape, size: int, dtype: DTypeLike) -> Any:
    """Return inputs that a model can take: zeros, or tokens that are 0."""
    kind = np.int64 if model.reads_tokens else dtype
    return joined_members(tuple(np.zeros((size, *sample), kind) for sample in member_shapes(input_shape)))


class _Measurement:
    """One layer's forward and backward, on arrays of its own.

    A layer that can work in place takes a further array here, where nothing stands before it: its memory is what it
    takes at most.

    Attributes
    ----------
    keeps_input, keeps_output : bool
        Whether the layer keeps them for backward.
    is_view : bool
        Whether its output is its input in another shape.
    """

    def __init__(
        self, layer: Layer, name: str, shape: Shape, size: int, dtype: np.dtype, loss: Loss | None, *, needs_dx: bool
    ) -> None:
        self._layer, self._loss, self._size, self._dtype = layer, loss, size, dtype
        layout = Layout(layer)
        params, grads = layout.allocate(dtype), layout.allocate(dtype)
        layout.initialize(params, seed=0)
        layout.bind(layer, params, grads)
        make_statistics(layer, dtype)
        self._pool = Pool()
        self._batch = MicroBatch(self._pool)
        learns = needs_dx or has_parameters(layer)
        self._ctx = Context(self._batch, name, needs_dx=needs_dx, needs_backward=learns)
        self._num_parameters, self._learns = layout.size, learns
        noise = np.random.default_rng(0)
        tokens = layer.reads_tokens
        self._x: Activation = zero_inputs(layer, shape, size, dtype) if tokens else self._take(shape, noise)
        self._dy = self._take(layer.output_shape(shape), noise)
        self._targets = np.zeros(0) if loss is None else zero_targets(loss, layer.output_shape(shape), size, dtype)
        self.seconds = min((self._run() for _ in range(1 + _REPEATS)), key=sum)
        del self._pool, self._x, self._dy, self._layer

    def _take(self, shape: Shape, noise: np.random.Generator) -> Activation:
        arrays = []
        for sample in member_shapes(shape):
            arrays.append(self._pool.take((self._size, *sample), self._dtype))
            arrays[-1][...] = noise.random((self._size, *sample), np.float32)
        return joined_members(tuple(arrays))

    def _run(self) -> tuple[float, float]:
        """Run once and return the seconds of forward and backward."""
        x, pool, layer, ctx = self._x, self._pool, self._layer, self._ctx
        self._batch.begin(np.arange(self._size), training=True)
        begun = pool.bytes_live
        start = time.perf_counter()
        y = layer.forward(x, ctx)
        forward = time.perf_counter() - start
        self._note_kept(y, begun)
        pool.peak_live = after_forward = pool.bytes_live
        start = time.perf_counter()
        dy = self._dy
        if self._loss is not None:
            _, dy = self._loss(y, self._targets, 1.0, ctx)
        dx = layer.backward_input(dy, ctx) if self._learns else None
        backward = time.perf_counter() - start
        if self._loss is not None:
            pool.release(dy)
        pool.release(y)
        pool.release(dx)
        self._note_deferred(begun)
        start = time.perf_counter()
        if self._learns:
            layer.backward_weight(ctx)
        backward += time.perf_counter() - start
        self.working_bytes = pool.peak_live - after_forward + self.output_bytes  # of the output's gradient
        return forward, backward

    def _note_kept(self, y: Activation, begun: int) -> None:
        """Note what the layer keeps now that forward is done: of its input, its output, and inside."""
        pool = self._pool
        inputs, outputs = (members(value) for value in (self._x, y))
        held = {id(array.base) for array in inputs}
        fresh = [array for array in outputs if id(array.base) not in held]
        self.is_view = len(fresh) < len(outputs)
        views = len(outputs) - len(fresh)
        self.keeps_input = sum(pool.count(array) for array in inputs) > len(inputs) + views
        self.keeps_output = any(pool.count(array) > 1 for array in fresh)
        self.input_bytes = sum(array.nbytes for array in inputs)
        self.output_bytes = sum(array.nbytes for array in fresh)
        self.inner_bytes = pool.bytes_live - begun - self.output_bytes

    def _note_deferred(self, begun: int) -> None:
        """Note what the layer keeps now that dgrad is done: of its input, and beside it."""
        x, dy = (members(value) for value in (self._x, self._dy))
        self.defers_input = any(self._pool.count(array) > 1 for array in x)
        defers_dy = any(self._pool.count(array) > 1 for array in dy)
        self.deferred_bytes = self._pool.bytes_live - begun + defers_dy * sum(array.nbytes for array in dy)

    def cost(self, num_arrays: float, kept_before: bool, from_loader: bool, handed_bytes: int = 0) -> LayerCost:
        """Return what the layer costs where its input is kept already by the layer before it, or is the loader's.

        `handed_bytes` are those of what comes with its input and is handed on.
        """
        keeps_more = self.keeps_input and not kept_before
        saved = self.inner_bytes + self.keeps_output * self.output_bytes + keeps_more * self.input_bytes
        return LayerCost(
            *self.seconds,
            fixed_bytes=round(num_arrays * self._num_parameters * self._dtype.itemsize),
            saved_bytes=saved,
            deferred_bytes=self.deferred_bytes + (self.defers_input and not from_loader) * self.input_bytes,
            input_bytes=self.input_bytes + handed_bytes,
            output_bytes=self.output_bytes,
            working_bytes=self.working_bytes,
        )
