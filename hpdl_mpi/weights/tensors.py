"""What a model's parameters and statistics are called, and how they lie in memory, in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.nn import Layer, Parameter, Shape, walk
from hpdl_mpi.nn.context import join


@dataclass(frozen=True)
class Tensor:
    """A parameter or statistic as PyTorch has it.

    Attributes
    ----------
    name : str
        In the whole model, here as there.
    parameter : Parameter
        What the layer declared of it.
    aliases : tuple of str
        Other names of the same, where parameters are tied.
    """

    name: str
    parameter: Parameter
    aliases: tuple[str, ...] = ()

    @property
    def shape(self) -> Shape:
        """Its shape there."""
        shape = self.parameter.shape
        if self._rows_are_images:
            return (*shape[:-3], shape[-1], *shape[-3:-1])
        return shape

    @property
    def _rows_are_images(self) -> bool:
        return self.parameter.images == (self.parameter.shape[-3:],)

    def outward(self, values: np.ndarray) -> np.ndarray:
        """Return a copy of our values, C-contiguous and of the shape there."""
        if not self.parameter.images:
            return values.copy()
        parts = [
            part.reshape(-1, *image).transpose(0, 3, 1, 2).reshape(len(part), -1) for part, image in self._parts(values)
        ]
        return np.ascontiguousarray(np.concatenate(parts, axis=1).reshape(self.shape))

    def inward(self, values: np.ndarray, out: np.ndarray) -> None:
        """Write values of the shape there into an array of ours."""
        if not self.parameter.images:
            out[...] = values
            return
        for (part, (height, width, channels)), (target, _) in zip(self._parts(values), self._parts(out), strict=True):
            image = part.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
            target[...] = image.reshape(target.shape)

    def _parts(self, values: np.ndarray) -> Iterator[tuple[np.ndarray, Shape]]:
        """Yield the columns, as a view, of each image that rows are made of, and its shape here."""
        start = 0
        rows = values.reshape(-1, sum(math.prod(image) for image in self.parameter.images))
        for image in self.parameter.images:
            stop = start + math.prod(image)
            yield rows[:, start:stop], image
            start = stop


def tensors(model: Layer) -> dict[str, Tensor]:
    """Return the tensors of a built model, in the order in which its layers run, by name.

    Raises
    ------
    InputError
        A part of the model computes something else in PyTorch, whatever its weights.
    """
    found: dict[str, Tensor] = {}
    for layer in walk(model):
        _require(layer.portable, layer)
        for parameter in (*layer.declared.values(), *layer.tracked.values()):
            name, own = layer.full_name(parameter), join(layer.path, parameter.name)
            tensor = found.get(name, Tensor(name, parameter))
            _require(tensor.parameter.images == parameter.images, layer)  # else those that are tied differ there
            found[name] = replace(tensor, aliases=(*tensor.aliases, own)) if own != name else tensor
    return found


def _require(portable: bool, layer: Layer) -> None:
    if not portable:
        raise InputError(
            "has no twin in PyTorch, where the features of flattened images stand in another order",
            where=f"layer {layer.path} ({type(layer).__name__})",
            remedy="normalise, add and tie images before they are flattened",
        )


def unread(model: Layer) -> list[str]:
    """Return the names of a built model's tensors that files may have beside all others; see `Layer.unread`."""
    return [join(layer.path, name) for layer in walk(model) for name in layer.unread]


def counters(model: Layer) -> list[str]:
    """Return the names under which PyTorch counts batches in a built model; see `Layer.counters`."""
    return [join(layer.path, name) for layer in walk(model) for name in layer.counters]
