"""VGG networks with batch normalisation (Simonyan and Zisserman, "Very deep convolutional networks", 2014)."""

from __future__ import annotations

from collections.abc import Sequence

from hpdl_mpi.models.naming import numbered
from hpdl_mpi.nn import (
    AdaptiveAvgPool2d,
    BatchNorm2d,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Layer,
    Linear,
    MaxPool2d,
    ReLU,
    Sequential,
)
from hpdl_mpi.nn.init import HeNormal

_WIDTHS = (64, 128, 256, 512, 512)
"""Channels of the stages; behind each the image is halved."""

_VGG11 = (1, 1, 2, 2, 2)
_VGG16 = (2, 2, 3, 3, 3)
"""Convolutions of the stages."""


def vgg11_bn(outputs: int = 1000, dropout: float = 0.5, hidden: int = 4096) -> Layer:
    """Return VGG-11 for ImageNet, with torchvision's names; for images of 32 x 32 or more.

    Parameters
    ----------
    outputs : int
        Classes.
    dropout : float
        Rate, behind the first two Linear layers.
    hidden : int
        Width of the first two Linear layers.
    """
    return _imagenet(_VGG11, outputs, dropout, hidden)


def vgg16_bn(outputs: int = 1000, dropout: float = 0.5, hidden: int = 4096) -> Layer:
    """Return VGG-16 for ImageNet, with torchvision's names; for images of 32 x 32 or more.

    Parameters
    ----------
    outputs : int
        Classes.
    dropout : float
        Rate, behind the first two Linear layers.
    hidden : int
        Width of the first two Linear layers.
    """
    return _imagenet(_VGG16, outputs, dropout, hidden)


def vgg16_cifar(outputs: int = 10) -> Layer:
    """Return VGG-16 for images of 32 x 32: the same convolutions, then one Linear layer on the mean of the pixels.

    Of an image of 32 x 32 one pixel is left, on which the three wide layers of ImageNet's form would be most of the
    model. This is the usual form for CIFAR-10 (14,728,266 parameters).
    """
    return Sequential(**_features(_VGG16), avgpool=GlobalAvgPool2d(), classifier=Linear(outputs))


def _features(counts: Sequence[int]) -> dict[str, Layer]:
    layers: list[Layer | None] = []
    for width, count in zip(_WIDTHS, counts, strict=True):
        for _ in range(count):
            layers += [Conv2d(width, 3, padding=1, init=HeNormal()), BatchNorm2d(activation="relu"), None]
        layers.append(MaxPool2d(2))
    return numbered("features", layers)


def _imagenet(counts: Sequence[int], outputs: int, dropout: float, hidden: int) -> Layer:
    classifier = [
        *(Linear(hidden), ReLU(), Dropout(dropout)),
        *(Linear(hidden), ReLU(), Dropout(dropout)),
        Linear(outputs),
    ]
    return Sequential(
        **_features(counts), avgpool=AdaptiveAvgPool2d(7), flatten=Flatten(), **numbered("classifier", classifier)
    )
