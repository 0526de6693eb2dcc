"""The models of the benchmarks in PyTorch: twins of those in `hpdl_mpi.models`, with channels first."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def mlp() -> nn.Module:
    """Return the twin of `hpdl_mpi.models.mlp` for samples of 784 values."""
    from torch import nn

    hidden = (nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU())
    return nn.Sequential(*hidden, nn.Linear(1024, 10))


def mlp_deep() -> nn.Module:
    """Return the twin of `hpdl_mpi.models.mlp_deep`, with the Flatten in front that lets it take images."""
    from torch import nn

    hidden = [layer for _ in range(23) for layer in (nn.Linear(1024, 1024), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(1024, 1024))


def lenet() -> nn.Module:
    """Return the twin of `hpdl_mpi.models.lenet` for grey images of 28 x 28."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(7 * 7 * 64, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def _made_in(module: str, name: str) -> Callable[[], nn.Module]:
    """Return a function of a module that needs PyTorch when it is imported; it is so when the function is called."""

    def make() -> nn.Module:
        return getattr(importlib.import_module(f"hpdl_mpi.bench.{module}"), name)()

    return make


_RESIDUAL = ("resnet18", "resnet18_cifar", "resnet20", "resnet34", "resnet50", "resnet56")
_OTHERS = ("alexnet", "mobilenet_v2", "vgg11_bn", "vgg16_bn", "vgg16_cifar")

_GPT = ("gpt2_124m", "gpt_nano", "gpt_small")

CUTTABLE = ("mlp", "mlp_deep", *_GPT)
"""Those that are rows of the same outermost layers as ours, so that a pipeline can be cut alike."""

TORCH_MODELS = {
    "lenet": lenet,
    "lstm_lm": _made_in("torch_recurrent", "lstm_lm"),
    "mlp": mlp,
    "mlp_deep": mlp_deep,
    **{name: _made_in("torch_gpt", name) for name in _GPT},
    "seq2seq": _made_in("torch_seq2seq", "seq2seq"),
    "vit_tiny": _made_in("torch_vit", "vit_tiny"),
    **{name: _made_in("torch_resnet", name) for name in _RESIDUAL},
    **{name: _made_in("torch_vision", name) for name in _OTHERS},
}
