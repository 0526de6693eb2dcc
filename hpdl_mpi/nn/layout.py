"""One flat array for all parameters of a rank, others for gradients and statistics; layers hold named views of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.base.memory import Allocator, aligned, heap
from hpdl_mpi.kernels.random import derive_key
from hpdl_mpi.nn.context import join
from hpdl_mpi.nn.layer import Layer, Parameter, Shape, walk

_ALIGNMENT = 32
"""Elements between starts of segments: 64 bytes even for 2-byte elements."""


@dataclass(frozen=True)
class Segment:
    """Where a parameter lies in a flat array: elements `start` to `stop`."""

    name: str
    start: int
    stop: int
    parameter: Parameter

    @property
    def shape(self) -> Shape:
        """The parameter's shape."""
        return self.parameter.shape


class Layout:
    """Maps the parameters of a built model to aligned places in a flat array.

    The order is the reverse of execution: backward fills the gradients front to back, so a run of segments is ready
    as soon as its last layer is done. Parameters, gradients, optimizer slots and copies in other dtypes are arrays of
    one Layout. Gaps between segments stay zero.

    Parameters
    ----------
    model : Layer
        Built; what it declared is read.
    statistics : bool
        Map the model's statistics instead.

    Attributes
    ----------
    segments : tuple of Segment
    size : int
        Elements of a flat array, gaps included.
    num_parameters : int
        Elements of all parameters.

    Raises
    ------
    InputError
        A layer with parameters stands in the model more than once.
    """

    def __init__(self, model: Layer, *, statistics: bool = False) -> None:
        refuse_shared(model)
        places: dict[str, Parameter] = {}
        for layer, parameter in reversed(list(_parameters(model, statistics=statistics))):
            # What is tied lies where its last gradient lands.
            places.pop(layer.full_name(parameter), None)
            places[layer.full_name(parameter)] = parameter
        segments, end = [], 0
        for name, parameter in places.items():
            stop = end + math.prod(parameter.shape)
            segments.append(Segment(name, end, stop, parameter))
            end = -(-stop // _ALIGNMENT) * _ALIGNMENT
        self.segments = tuple(segments)
        self.size = end
        self.num_parameters = sum(segment.stop - segment.start for segment in segments)

    def allocate(self, dtype: DTypeLike, allocate: Allocator = heap) -> np.ndarray:
        """Return a zeroed flat array of this layout, shape (size,); the caller owns it."""
        return aligned(self.size, dtype, allocate)

    def views(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """Return views of the parameters' places in a flat array, by full name, each of the parameter's shape."""
        return {segment.name: flat[segment.start : segment.stop].reshape(segment.shape) for segment in self.segments}

    def bind(self, model: Layer, params: np.ndarray, grads: np.ndarray) -> None:
        """Give the model's layers their views of two flat arrays."""
        values, gradients = self.views(params), self.views(grads)
        for layer, parameter in _parameters(model):
            name = layer.full_name(parameter)
            layer.params[parameter.name] = values[name]
            layer.grads[parameter.name] = gradients[name]

    def bind_statistics(self, model: Layer, values: np.ndarray) -> None:
        """Give the model's layers their views of a flat array of statistics."""
        views = self.views(values)
        for layer, parameter in _parameters(model, statistics=True):
            layer.statistics[parameter.name] = views[layer.full_name(parameter)]

    def initialize(self, params: np.ndarray, seed: int) -> None:
        """Write the starting values into a flat array: each parameter's depend on the seed and its name alone."""
        for segment in self.segments:
            parameter = segment.parameter
            key = derive_key(seed, "init", segment.name)
            parameter.init(params[segment.start : segment.stop], key, *parameter.fans)


def refuse_shared(model: Layer) -> None:
    """Raise an InputError if a layer with parameters stands in a built model more than once."""
    names = Counter(join(layer.path, parameter.name) for layer, parameter in _parameters(model))
    for name, count in names.items():
        if count > 1:
            raise InputError(
                "the same layer stands in the model more than once",
                where=f"parameter {name}",
                found=f"{count} places",
                expected="one",
                remedy="make a layer for each place; Sequential.tie lets them share parameters",
            )


def _parameters(model: Layer, *, statistics: bool = False) -> Iterator[tuple[Layer, Parameter]]:
    for layer in walk(model):
        for parameter in (layer.tracked if statistics else layer.declared).values():
            yield layer, parameter


def make_statistics(model: Layer, dtype: DTypeLike, allocate: Allocator = heap) -> tuple[Layout, np.ndarray]:
    """Return the layout of a built model's statistics, and their flat array, which its layers are bound to."""
    layout = Layout(model, statistics=True)
    values = layout.allocate(dtype, allocate)
    layout.initialize(values, seed=0)
    layout.bind_statistics(model, values)
    return layout, values
