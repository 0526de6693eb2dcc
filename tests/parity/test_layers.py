"""Layers of features and images against PyTorch's, on the same parameters: output and every gradient.

Those for sequences are in `test_sequence_layers`, and recurrent ones in `test_recurrent`. What layers draw at random
cannot be the same.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn as tnn

from hpdl_mpi import nn
from hpdl_mpi.nn import Layer, Shape
from tests.parity.convert import Flatten, assert_close, assert_gradients_close, load, to_torch
from tests.unit.nn.rig import Case, Rig

pytestmark = pytest.mark.parity


class Residual(tnn.Module):
    def __init__(self, body: tnn.Module, shortcut: tnn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + (self.shortcut(x) if self.shortcut else x)


class Parallel(tnn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self], 1)


IMAGE = (11, 8, 3)

LAYERS: dict[str, tuple[Callable[[], Layer], Callable[[], tnn.Module], Shape]] = {
    "Linear": (lambda: nn.Linear(5), lambda: tnn.Linear(7, 5), (7,)),
    "Linear, no bias": (lambda: nn.Linear(5, bias=False), lambda: tnn.Linear(7, 5, bias=False), (7,)),
    "Linear, of sequences": (lambda: nn.Linear(5), lambda: tnn.Linear(7, 5), (4, 7)),
    "Conv2d": (lambda: nn.Conv2d(4, 3), lambda: tnn.Conv2d(3, 4, 3), IMAGE),
    "Conv2d, padded": (lambda: nn.Conv2d(4, 3, padding=1), lambda: tnn.Conv2d(3, 4, 3, padding=1), IMAGE),
    "Conv2d, uneven": (
        lambda: nn.Conv2d(4, (2, 5), stride=(3, 2), padding=(1, 2), bias=False),
        lambda: tnn.Conv2d(3, 4, (2, 5), stride=(3, 2), padding=(1, 2), bias=False),
        IMAGE,
    ),
    "Conv2d, stride above kernel": (lambda: nn.Conv2d(4, 2, stride=3), lambda: tnn.Conv2d(3, 4, 2, stride=3), IMAGE),
    "Conv2d, padding above kernel": (lambda: nn.Conv2d(4, 1, padding=3), lambda: tnn.Conv2d(3, 4, 1, padding=3), IMAGE),
    "Conv2d, of the whole image": (lambda: nn.Conv2d(4, (11, 8)), lambda: tnn.Conv2d(3, 4, (11, 8)), IMAGE),
    "Conv2d, Winograd": (lambda: nn.Conv2d(16, 3, padding=1), lambda: tnn.Conv2d(9, 16, 3, padding=1), (11, 8, 9)),
    "Conv2d, Winograd, 5 x 5": (
        lambda: nn.Conv2d(16, 5, padding=2),
        lambda: tnn.Conv2d(9, 16, 5, padding=2),
        (11, 8, 9),
    ),
    "Conv2d, of one pixel": (lambda: nn.Conv2d(4, 1), lambda: tnn.Conv2d(3, 4, 1), IMAGE),
    "Conv2d, grouped": (
        lambda: nn.Conv2d(4, 3, stride=2, groups=2),
        lambda: tnn.Conv2d(6, 4, 3, stride=2, groups=2),
        (11, 8, 6),
    ),
    "Conv2d, depthwise": (
        lambda: nn.Conv2d(6, 3, padding=1, groups=6),
        lambda: tnn.Conv2d(6, 6, 3, padding=1, groups=6),
        (11, 8, 6),
    ),
    "BatchNorm2d": (nn.BatchNorm2d, lambda: tnn.BatchNorm2d(3), IMAGE),
    "BatchNorm2d, ReLU": (
        lambda: nn.Sequential(nn.BatchNorm2d(eps=0.01, momentum=0.3, activation="relu")),
        lambda: tnn.Sequential(tnn.BatchNorm2d(3, eps=0.01, momentum=0.3), tnn.ReLU()),
        IMAGE,
    ),
    "BatchNorm2d, of features": (nn.BatchNorm2d, lambda: tnn.BatchNorm1d(7), (7,)),
    "LayerNorm": (nn.LayerNorm, lambda: tnn.LayerNorm(7), (5, 7)),
    "GroupNorm": (lambda: nn.GroupNorm(3, eps=0.01), lambda: tnn.GroupNorm(3, 6, eps=0.01), (11, 8, 6)),
    "GroupNorm, of features": (lambda: nn.GroupNorm(2), lambda: tnn.GroupNorm(2, 6), (6,)),
    "GlobalAvgPool2d": (nn.GlobalAvgPool2d, lambda: tnn.Sequential(tnn.AdaptiveAvgPool2d(1), tnn.Flatten()), IMAGE),
    "MaxPool2d": (lambda: nn.MaxPool2d(2), lambda: tnn.MaxPool2d(2), IMAGE),
    "MaxPool2d, overlapping": (
        lambda: nn.MaxPool2d((3, 2), stride=(2, 1), padding=1),
        lambda: tnn.MaxPool2d((3, 2), stride=(2, 1), padding=1),
        IMAGE,
    ),
    "AvgPool2d": (lambda: nn.AvgPool2d(2), lambda: tnn.AvgPool2d(2), IMAGE),
    "AvgPool2d, overlapping": (
        lambda: nn.AvgPool2d((3, 2), stride=(2, 1), padding=1),
        lambda: tnn.AvgPool2d((3, 2), stride=(2, 1), padding=1),
        IMAGE,
    ),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d((4, 2)), lambda: tnn.AdaptiveAvgPool2d((4, 2)), IMAGE),
    "AdaptiveAvgPool2d, above the image": (
        lambda: nn.AdaptiveAvgPool2d((12, 20)),
        lambda: tnn.AdaptiveAvgPool2d((12, 20)),
        IMAGE,
    ),
    "Flatten": (nn.Flatten, Flatten, IMAGE),
    "ReLU": (nn.ReLU, tnn.ReLU, IMAGE),
    "LeakyReLU": (lambda: nn.LeakyReLU(0.2), lambda: tnn.LeakyReLU(0.2), IMAGE),
    "ReLU6": (
        lambda: nn.Sequential(nn.Linear(9), nn.ReLU6()),
        lambda: tnn.Sequential(tnn.Linear(40, 9), tnn.ReLU6()),
        (40,),
    ),
    "SiLU": (nn.SiLU, tnn.SiLU, IMAGE),
    "GELU": (nn.GELU, tnn.GELU, IMAGE),
    "GELU, tanh": (lambda: nn.GELU("tanh"), lambda: tnn.GELU("tanh"), IMAGE),
    "Sigmoid": (nn.Sigmoid, tnn.Sigmoid, IMAGE),
    "Tanh": (nn.Tanh, tnn.Tanh, IMAGE),
    "Softmax": (nn.Softmax, lambda: tnn.Softmax(-1), (9,)),
    "Softmax, of sequences": (nn.Softmax, lambda: tnn.Softmax(-1), (4, 9)),
    "Dropout, of nothing": (lambda: nn.Dropout(0.0), lambda: tnn.Dropout(0.0), IMAGE),
    "Sequential": (
        lambda: nn.Sequential(nn.Conv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5)),
        lambda: tnn.Sequential(tnn.Conv2d(3, 4, 3), tnn.ReLU(), Flatten(), tnn.Linear(216, 5)),
        IMAGE,
    ),
    "Residual": (
        lambda: nn.Residual(nn.Sequential(nn.Conv2d(3, 3, padding=1), nn.Tanh())),
        lambda: Residual(tnn.Sequential(tnn.Conv2d(3, 3, 3, padding=1), tnn.Tanh())),
        IMAGE,
    ),
    "Residual, with shortcut": (
        lambda: nn.Residual(nn.Conv2d(4, 3, stride=2, padding=1), nn.Conv2d(4, 1, stride=2)),
        lambda: Residual(tnn.Conv2d(3, 4, 3, stride=2, padding=1), tnn.Conv2d(3, 4, 1, stride=2)),
        IMAGE,
    ),
    "Parallel": (
        lambda: nn.Parallel(nn.Conv2d(4, 1), nn.Conv2d(2, 3, padding=1), nn.Tanh()),
        lambda: Parallel(tnn.Conv2d(3, 4, 1), tnn.Conv2d(3, 2, 3, padding=1), tnn.Tanh()),
        IMAGE,
    ),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("ours", "theirs", "shape"), LAYERS.values(), ids=LAYERS)
def test_layer_is_that_of_pytorch(
    ours: Callable[[], Layer], theirs: Callable[[], tnn.Module], shape: Shape, dtype: type
) -> None:
    rig = Rig(Case(ours, shape, lambda x, p: x), dtype)
    module = theirs().to(to_torch(rig.x).dtype)
    statistics = rig.statistics_layout.views(rig.statistics)
    load(module, rig.named_params | statistics)
    x = to_torch(rig.x).requires_grad_()
    y = module(x)
    y.backward(to_torch(rig.dy))
    assert_close(rig.output(rig.x), y)
    assert_close(rig.step(rig.x, rig.dy), x.grad)
    assert_gradients_close(rig.layout.views(rig.grads), module)
    module(x)  # ours has run forward twice
    for name, values in statistics.items():
        assert_close(values, module.state_dict()[name], name)
