"""MobileNetV2 (Sandler et al., "Inverted residuals and linear bottlenecks", 2018)."""

from __future__ import annotations

from hpdl_mpi.base.errors import is_number, require
from hpdl_mpi.models.naming import numbered
from hpdl_mpi.nn import BatchNorm2d, Conv2d, Dropout, GlobalAvgPool2d, Layer, Linear, Residual, Sequential
from hpdl_mpi.nn.init import HeNormal

_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""How many times a block widens its input, channels, blocks, and the stride of the first of them."""


def mobilenet_v2(outputs: int = 1000, width_mult: float = 1.0, dropout: float = 0.2) -> Layer:
    """Return MobileNetV2, with torchvision's names.

    Parameters
    ----------
    outputs : int
        Classes.
    width_mult : float
        Scales the numbers of channels, which are then rounded to multiples of 8; above 0, at most 100.
    dropout : float
        Rate, in front of the Linear layer.
    """
    require("width_mult", width_mult, is_number(width_mult) and 0 < width_mult <= 100, "a number above 0, at most 100")
    channels = _rounded(32 * width_mult)
    features: list[Layer] = [_unit(channels, 3, 2)]
    for expansion, width, count, stride in _STAGES:
        for block in range(count):
            after = _rounded(width * width_mult)
            features.append(inverted_residual(channels, after, stride if block == 0 else 1, expansion))
            channels = after
    features.append(_unit(_rounded(1280 * max(1.0, width_mult)), 1))
    return Sequential(
        **numbered("features", features),
        avgpool=GlobalAvgPool2d(),
        **numbered("classifier", [Dropout(dropout), Linear(outputs)]),
    )


def inverted_residual(in_channels: int, channels: int, stride: int, expansion: int) -> Layer:
    """Return a block that widens its input, convolves each channel alone, and narrows again without an activation.

    It has a shortcut where the shape stays.
    """
    width = in_channels * expansion
    widened = [_unit(width, 1)] if expansion > 1 else []
    body = Sequential(*widened, _unit(width, 3, stride, groups=width), _conv(channels, 1), BatchNorm2d())
    same = stride == 1 and in_channels == channels
    return Residual(body, names=("conv", "shortcut")) if same else Sequential(conv=body)


def _conv(channels: int, kernel_size: int, stride: int = 1, groups: int = 1) -> Layer:
    padding = kernel_size // 2
    return Conv2d(channels, kernel_size, stride=stride, padding=padding, groups=groups, bias=False, init=HeNormal())


def _unit(channels: int, kernel_size: int, stride: int = 1, groups: int = 1) -> Layer:
    """Return a convolution with batch normalisation and ReLU6."""
    return Sequential(_conv(channels, kernel_size, stride, groups), BatchNorm2d(activation="relu6"))


def _rounded(channels: float) -> int:
    """Return the nearest multiple of 8, but not more than a tenth below."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8
