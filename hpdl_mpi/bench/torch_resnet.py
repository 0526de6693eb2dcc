"""Residual networks in PyTorch: twins of those in `hpdl_mpi.models.resnet`, under the same names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class Block(nn.Module):
    """Two convolutions of 3 x 3, or with `bottleneck` one between two of 1 x 1, and a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        outputs = 4 * channels if bottleneck else channels
        self.conv1 = _conv(in_channels, channels, 1) if bottleneck else _conv(in_channels, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv(channels, channels, 3, stride if bottleneck else 1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.bottleneck = bottleneck
        if bottleneck:
            self.conv3 = _conv(channels, outputs, 1)
            self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        same = stride == 1 and in_channels == outputs
        self.downsample = (
            None if same else nn.Sequential(_conv(in_channels, outputs, 1, stride), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.bottleneck:
            y = self.bn3(self.conv3(self.relu(y)))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


def resnet20() -> nn.Module:
    """Return the twin of `hpdl_mpi.models.resnet20`."""
    return _resnet(_small_stem(16), 16, (16, 32, 64), (3, 3, 3), 10)


def resnet18_cifar() -> nn.Module:
    """Return the twin of `hpdl_mpi.models.resnet18_cifar`."""
    return _resnet(_small_stem(64), 64, (64, 128, 256, 512), (2, 2, 2, 2), 10)


def resnet18() -> nn.Module:
    """Return the twin of `hpdl_mpi.models.resnet18`."""
    return _resnet(_imagenet_stem(), 64, (64, 128, 256, 512), (2, 2, 2, 2), 1000)


def resnet50() -> nn.Module:
    """Return the twin of `hpdl_mpi.models.resnet50`."""
    return _resnet(_imagenet_stem(), 64, (64, 128, 256, 512), (3, 4, 6, 3), 1000, bottleneck=True)


def _conv(in_channels: int, channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, kernel_size, stride, kernel_size // 2, bias=False)


def _imagenet_stem() -> dict[str, nn.Module]:
    return {
        "conv1": _conv(3, 64, 7, 2),
        "bn1": nn.BatchNorm2d(64),
        "relu": nn.ReLU(inplace=True),
        "maxpool": nn.MaxPool2d(3, 2, 1),
    }


def _small_stem(channels: int) -> dict[str, nn.Module]:
    return {"conv1": _conv(3, channels, 3), "bn1": nn.BatchNorm2d(channels), "relu": nn.ReLU(inplace=True)}


def _resnet(
    stem: dict[str, nn.Module],
    channels: int,
    stages: Sequence[int],
    blocks: Sequence[int],
    outputs: int,
    *,
    bottleneck: bool = False,
) -> nn.Module:
    model = nn.Sequential()
    for name, layer in stem.items():
        model.add_module(name, layer)
    for number, (width, count) in enumerate(zip(stages, blocks, strict=True)):
        stage = nn.Sequential()
        for block in range(count):
            stride = 2 if number > 0 and block == 0 else 1
            stage.append(Block(channels, width, stride, bottleneck=bottleneck))
            channels = width * (4 if bottleneck else 1)
        model.add_module(f"layer{number + 1}", stage)
    model.add_module("avgpool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flatten", nn.Flatten())
    model.add_module("fc", nn.Linear(channels, outputs))
    return model
