"""Networks for images in PyTorch: twins of those in `hpdl_mpi.models`, as torchvision writes them, under its names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class Network(nn.Module):
    """Features, their mean over areas of the image, and a classifier."""

    def __init__(self, features: nn.Module, output_size: int, classifier: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d(output_size)
        self.classifier = classifier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs of the classifier."""
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def alexnet(outputs: int = 1000, dropout: float = 0.5, hidden: int = 4096) -> nn.Module:
    """Return the twin of `hpdl_mpi.models.alexnet`."""
    features = nn.Sequential(
        *(nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
    )
    classifier = nn.Sequential(
        *(nn.Dropout(dropout), nn.Linear(256 * 6 * 6, hidden), nn.ReLU(inplace=True)),
        *(nn.Dropout(dropout), nn.Linear(hidden, hidden), nn.ReLU(inplace=True)),
        nn.Linear(hidden, outputs),
    )
    return Network(features, 6, classifier)


def vgg11_bn(outputs: int = 1000, dropout: float = 0.5, hidden: int = 4096) -> nn.Module:
    """Return the twin of `hpdl_mpi.models.vgg11_bn`."""
    return Network(_vgg_features((1, 1, 2, 2, 2)), 7, _vgg_classifier(outputs, dropout, hidden))


def vgg16_bn(outputs: int = 1000, dropout: float = 0.5, hidden: int = 4096) -> nn.Module:
    """Return the twin of `hpdl_mpi.models.vgg16_bn`."""
    return Network(_vgg_features((2, 2, 3, 3, 3)), 7, _vgg_classifier(outputs, dropout, hidden))


def vgg16_cifar(outputs: int = 10) -> nn.Module:
    """Return the twin of `hpdl_mpi.models.vgg16_cifar`."""
    return Network(_vgg_features((2, 2, 3, 3, 3)), 1, nn.Linear(512, outputs))


def _vgg_features(counts: Sequence[int]) -> nn.Module:
    features = nn.Sequential()
    channels = 3
    for width, count in zip((64, 128, 256, 512, 512), counts, strict=True):
        for _ in range(count):
            features.extend([nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)])
            channels = width
        features.append(nn.MaxPool2d(2))
    return features


def _vgg_classifier(outputs: int, dropout: float, hidden: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(512 * 7 * 7, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout)),
        *(nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout)),
        nn.Linear(hidden, outputs),
    )


class InvertedResidual(nn.Module):
    """A block of MobileNetV2, with a shortcut where the shape stays."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = in_channels * expansion
        self.adds = stride == 1 and in_channels == channels
        self.conv = nn.Sequential()
        if expansion > 1:
            self.conv.append(_unit(in_channels, width, 1))
        self.conv.append(_unit(width, width, 3, stride, groups=width))
        self.conv.append(nn.Conv2d(width, channels, 1, bias=False))
        self.conv.append(nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output."""
        return x + self.conv(x) if self.adds else self.conv(x)


def mobilenet_v2(outputs: int = 1000, dropout: float = 0.2) -> nn.Module:
    """Return the twin of `hpdl_mpi.models.mobilenet_v2` in its usual width."""
    stages = (
        *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
        *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    )
    channels = 32
    features = nn.Sequential(_unit(3, channels, 3, 2))
    for expansion, width, count, stride in stages:
        for block in range(count):
            features.append(InvertedResidual(channels, width, stride if block == 0 else 1, expansion))
            channels = width
    features.append(_unit(channels, 1280, 1))
    return Network(features, 1, nn.Sequential(nn.Dropout(dropout), nn.Linear(1280, outputs)))


def _unit(in_channels: int, channels: int, kernel_size: int, stride: int = 1, groups: int = 1) -> nn.Module:
    convolution = nn.Conv2d(in_channels, channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU6(inplace=True))
