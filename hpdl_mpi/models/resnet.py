"""Residual networks (He et al., "Deep residual learning for image recognition", 2016)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hpdl_mpi.nn import BatchNorm2d, Conv2d, GlobalAvgPool2d, Layer, Linear, MaxPool2d, Residual, Sequential
from hpdl_mpi.nn.init import HeNormal

Block = Callable[[int, int, int], Layer]
"""Makes a block from the channels that come in, those of its convolutions, and a stride."""

_EXPANSION = 4
"""Channels that come out of a `bottleneck` for one of its convolution of 3 x 3."""


def resnet20(outputs: int = 10) -> Layer:
    """Return the network of 20 layers for images of 32 x 32: three stages of three blocks, 16 to 64 channels."""
    return _cifar_resnet(3, outputs)


def resnet56(outputs: int = 10) -> Layer:
    """Return the network of 56 layers for images of 32 x 32: three stages of nine blocks, 16 to 64 channels."""
    return _cifar_resnet(9, outputs)


def resnet18_cifar(outputs: int = 10) -> Layer:
    """Return ResNet-18 with a first convolution for images of 32 x 32, which keeps their size."""
    stem = {"conv1": _conv(64, 3), "bn1": BatchNorm2d(activation="relu")}
    return _resnet(stem, 64, (64, 128, 256, 512), (2, 2, 2, 2), basic_block, outputs)


def resnet18(outputs: int = 1000) -> Layer:
    """Return ResNet-18 for ImageNet."""
    return _resnet(_imagenet_stem(), 64, (64, 128, 256, 512), (2, 2, 2, 2), basic_block, outputs)


def resnet34(outputs: int = 1000) -> Layer:
    """Return ResNet-34 for ImageNet."""
    return _resnet(_imagenet_stem(), 64, (64, 128, 256, 512), (3, 4, 6, 3), basic_block, outputs)


def resnet50(outputs: int = 1000) -> Layer:
    """Return ResNet-50 for ImageNet, with strides in the convolutions of 3 x 3."""
    return _resnet(_imagenet_stem(), 64, (64, 128, 256, 512), (3, 4, 6, 3), bottleneck, outputs, _EXPANSION)


def basic_block(in_channels: int, channels: int, stride: int) -> Layer:
    """Return two convolutions of 3 x 3 with a shortcut."""
    body = Sequential(
        conv1=_conv(channels, 3, stride),
        bn1=BatchNorm2d(activation="relu"),
        conv2=_conv(channels, 3),
        bn2=BatchNorm2d(),
    )
    return _block(body, in_channels, channels, stride)


def bottleneck(in_channels: int, channels: int, stride: int) -> Layer:
    """Return convolutions of 1 x 1, 3 x 3 and 1 x 1, the last with four times the channels, and a shortcut."""
    body = Sequential(
        conv1=_conv(channels, 1),
        bn1=BatchNorm2d(activation="relu"),
        conv2=_conv(channels, 3, stride),
        bn2=BatchNorm2d(activation="relu"),
        conv3=_conv(_EXPANSION * channels, 1),
        bn3=BatchNorm2d(),
    )
    return _block(body, in_channels, _EXPANSION * channels, stride)


def _conv(channels: int, kernel_size: int, stride: int = 1) -> Layer:
    return Conv2d(channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=False, init=HeNormal())


def _block(body: Layer, in_channels: int, channels: int, stride: int) -> Layer:
    """Return a body with its shortcut, which projects where the shape changes; names are those of torchvision."""
    same = stride == 1 and in_channels == channels
    shortcut = None if same else Sequential(_conv(channels, 1, stride), BatchNorm2d())
    return Residual(body, shortcut, activation="relu", names=("", "downsample"))


def _imagenet_stem() -> dict[str, Layer]:
    return {
        "conv1": _conv(64, 7, 2),
        "bn1": BatchNorm2d(activation="relu"),
        "maxpool": MaxPool2d(3, stride=2, padding=1),
    }


def _cifar_resnet(blocks: int, outputs: int) -> Layer:
    stem = {"conv1": _conv(16, 3), "bn1": BatchNorm2d(activation="relu")}
    return _resnet(stem, 16, (16, 32, 64), (blocks, blocks, blocks), basic_block, outputs)


def _resnet(
    stem: dict[str, Layer],
    channels: int,
    stages: Sequence[int],
    blocks: Sequence[int],
    make_block: Block,
    outputs: int,
    expansion: int = 1,
) -> Layer:
    """Return stem, stages of blocks and head; the stem gives `channels`, stages but the first halve the image.

    Of a block come `expansion` channels for each that `stages` names.
    """
    layers = dict(stem)
    for number, (width, count) in enumerate(zip(stages, blocks, strict=True)):
        for block in range(count):
            stride = 2 if number > 0 and block == 0 else 1
            layers[f"layer{number + 1}.{block}"] = make_block(channels, width, stride)
            channels = expansion * width
    return Sequential(**layers, avgpool=GlobalAvgPool2d(), fc=Linear(outputs))
