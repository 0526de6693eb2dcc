"""Flattened samples remember the images that they were.

Channels come last here and first in PyTorch, so the features of a flattened image stand in another order there. A
layer that reads them declares of which images they are made (`Layer.declare`), so that its weights can cross over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

from hpdl_mpi.nn.layer import Shape


class FlatShape(tuple[int, ...]):
    """The shape (n,) of flattened samples. Layers that keep a shape pass it on, so what it knows travels with it.

    Attributes
    ----------
    images : tuple of (int, int, int)
        Height, width and channels of the images whose pixels the features are, one image after the other.
    """

    images: tuple[Shape, ...]

    def __new__(cls, images: Sequence[Shape]) -> Self:
        self = super().__new__(cls, (sum(math.prod(image) for image in images),))
        self.images = tuple(images)
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (self.images,)


def images_in(shape: Shape) -> tuple[Shape, ...]:
    """Return the images of which the last dim of samples is made; none where their order is the same in PyTorch."""
    images = shape.images if isinstance(shape, FlatShape) else ()
    return images if any(height * width > 1 and channels > 1 for height, width, channels in images) else ()


def joined(shapes: Sequence[Shape]) -> Shape:
    """Return the shape of samples that are joined along their last dim; the other dims are the same in all."""
    width = sum(shape[-1] for shape in shapes)
    if not any(images_in(shape) for shape in shapes):
        return (*shapes[0][:-1], width)
    return FlatShape([image for shape in shapes for image in images_in(shape) or ((1, 1, shape[-1]),)])
