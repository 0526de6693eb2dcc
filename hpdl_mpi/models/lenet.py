"""A small convolutional network for small grey images, after LeCun et al. (1998)."""

from __future__ import annotations

from hpdl_mpi.base.errors import integers, require
from hpdl_mpi.nn import Conv2d, Flatten, Layer, Linear, MaxPool2d, ReLU, Sequential


def lenet(outputs: int = 10, channels: tuple[int, int] = (32, 64), hidden: int = 128) -> Layer:
    """Return two 3x3 convolutions, each with ReLU and 2x2 max pooling, then two Linear layers.

    Parameters
    ----------
    outputs : int
        Classes.
    channels : (int, int)
        Output channels of the convolutions.
    hidden : int
        Width of the hidden Linear layer.
    """
    widths = integers(channels, 1) or ()
    require("channels", channels, len(widths) == 2, "two integers of at least 1, such as (32, 64)")
    blocks: list[Layer] = []
    for width in widths:
        blocks += [Conv2d(width, 3, padding=1), ReLU(), MaxPool2d(2)]
    return Sequential(*blocks, Flatten(), Linear(hidden), ReLU(), Linear(outputs))
