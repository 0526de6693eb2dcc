"""A model cut into stages. A stage is a run of the model's outermost layers, under the names they have there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.nn import Layer, Sequential, Shape


@dataclass(frozen=True)
class Stage:
    """A part of a model.

    Attributes
    ----------
    model : Layer
        Built. Its layers have the paths, so the names and random keys, that they have in the whole model.
    input_shape, output_shape : tuple of int
        Of one sample.
    """

    model: Layer
    input_shape: Shape
    output_shape: Shape


def cut(model: Layer, input_shape: Shape, cuts: Sequence[int]) -> list[Stage]:
    """Cut a model before the outermost layers of these numbers, and build the stages; allocates nothing.

    Parameters
    ----------
    model : Sequential
    input_shape : tuple of int
        Of one sample.
    cuts : sequence of int
        Rising; one fewer than there are stages. None is empty.

    Raises
    ------
    InputError
        The model is no Sequential, or the cuts leave a stage without layers.
    """
    if not isinstance(model, Sequential):
        found = type(model).__name__
        raise InputError("only a Sequential can be cut into stages", where="model", found=found)
    layers = list(model.children.items())
    bounds = [0, *cuts, len(layers)]
    if any(start >= stop for start, stop in pairwise(bounds)):
        raise InputError(
            "the cuts leave a stage without layers",
            where="parallel.cuts",
            found=list(cuts),
            expected=f"rising numbers of layers from 1 to {len(layers) - 1}",
        )
    stages = []
    for start, stop in pairwise(bounds):
        part = Sequential(**dict(layers[start:stop]))
        part.build(input_shape)
        output_shape = part.output_shape(input_shape)
        stages.append(Stage(part, input_shape, output_shape))
        input_shape = output_shape
    return stages
