"""Weights that cross the border: our outputs with PyTorch's weights, and PyTorch's with ours; moving averages too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn as tnn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hpdl_mpi import models, nn
from hpdl_mpi.bench import torch_resnet, torch_vision
from hpdl_mpi.bench.torch_models import TORCH_MODELS
from hpdl_mpi.comm import SingleCommunicator
from hpdl_mpi.nn import CrossEntropy, Layer, Shape
from hpdl_mpi.optim import SGD
from hpdl_mpi.parallel import ProcessGrid, Replica
from hpdl_mpi.parallel.pipeline import Feed
from hpdl_mpi.train.export import export
from hpdl_mpi.weights import TensorFile, fill
from tests.parity.convert import assert_close, to_torch

pytestmark = pytest.mark.parity


def small() -> Layer:
    """Return a network whose Linear layer reads flattened images, past layers that keep their shape."""
    convolution = nn.Conv2d(6, 3, padding=1, groups=3), nn.BatchNorm2d(), nn.Tanh(), nn.MaxPool2d(2)
    return nn.Sequential(*convolution, nn.Flatten(), nn.BatchNorm2d(), nn.Dropout(0.5), nn.Linear(7))


def torch_small() -> tnn.Module:
    convolution = tnn.Conv2d(3, 6, 3, padding=1, groups=3), tnn.BatchNorm2d(6), tnn.Tanh(), tnn.MaxPool2d(2)
    return tnn.Sequential(*convolution, tnn.Flatten(), tnn.BatchNorm1d(4 * 5 * 6), tnn.Dropout(0.5), tnn.Linear(120, 7))


MODELS: dict[str, tuple[Callable[[], Layer], Callable[[], tnn.Module], Shape]] = {
    "alexnet": (models.alexnet, torch_vision.alexnet, (127, 95, 3)),
    "lenet": (models.lenet, TORCH_MODELS["lenet"], (28, 28, 1)),
    "resnet18": (models.resnet18, torch_resnet.resnet18, (64, 64, 3)),
    "mobilenet_v2": (models.mobilenet_v2, torch_vision.mobilenet_v2, (64, 64, 3)),
    "resnet20": (models.resnet20, torch_resnet.resnet20, (32, 32, 3)),
    "resnet50": (models.resnet50, torch_resnet.resnet50, (64, 64, 3)),
    "vgg11_bn": (models.vgg11_bn, torch_vision.vgg11_bn, (64, 96, 3)),
    "small": (small, torch_small, (8, 10, 3)),
}
every_model = pytest.mark.parametrize(("ours", "theirs", "shape"), MODELS.values(), ids=MODELS)


def disturb(module: tnn.Module) -> None:
    """Give all parameters of normalisation, and all statistics, values of their own."""
    generator = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, tnn.BatchNorm1d | tnn.BatchNorm2d):
            for values in (layer.weight.data, layer.bias.data, layer.running_mean, layer.running_var):
                values.copy_(torch.rand(values.shape, generator=generator) + 0.5)


def replica_of(model: Layer, shape: Shape, seed: int = 0) -> Replica:
    return Replica(model, shape, SGD(0.1), dtype=np.float32, seed=seed)


def assert_same_outputs(replica: Replica, module: tnn.Module) -> None:
    x = np.random.default_rng(0).normal(size=(3, *replica.input_shape)).astype(np.float32)
    module.eval()
    with torch.no_grad():
        expected = module(to_torch(x))
    assert_close(replica.predict(x, np.arange(3)), expected)


@every_model
def test_weights_of_pytorch_give_its_outputs(
    ours: Callable[[], Layer], theirs: Callable[[], tnn.Module], shape: Shape, tmp_path: Path
) -> None:
    module, replica = theirs(), replica_of(ours(), shape)
    disturb(module)
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    fill(TensorFile(tmp_path / "w.safetensors"), replica.model, replica.arrays())
    assert_same_outputs(replica, module)


@every_model
def test_our_weights_give_pytorch_our_outputs(
    ours: Callable[[], Layer], theirs: Callable[[], tnn.Module], shape: Shape, tmp_path: Path
) -> None:
    module, replica = theirs(), replica_of(ours(), shape, seed=5)
    rng = np.random.default_rng(0)
    replica.statistics[:] = rng.random(replica.statistics.size) + 0.5
    replica.step = 7
    grid = ProcessGrid(SingleCommunicator(), {"pp": 1, "dp": 1})
    export(tmp_path / "w.safetensors", replica, grid, averaged=False)
    found = load_file(tmp_path / "w.safetensors")
    assert {name: (value.shape, value.dtype) for name, value in found.items()} == {
        name: (value.shape, value.dtype) for name, value in module.state_dict().items()
    }
    module.load_state_dict(found, strict=True)
    assert all(value == 7 for name, value in found.items() if name.endswith("num_batches_tracked"))
    assert_same_outputs(replica, module)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_converted_as_pytorch_does(dtype: torch.dtype, tmp_path: Path) -> None:
    module, replica = torch_small().to(dtype), replica_of(small(), (8, 10, 3))
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    fill(TensorFile(tmp_path / "w.safetensors"), replica.model, replica.arrays())
    assert_same_outputs(replica, module.float())


def test_moving_average_is_that_of_pytorch() -> None:
    """Of a model without statistics: here their update follows the loss, not the forward pass alone."""
    ours = nn.Sequential(nn.Linear(8), nn.Tanh(), nn.Linear(3))
    replica = Replica(ours, (5,), SGD(0.3, momentum=0.9), dtype=np.float64, seed=0, ema=0.9)
    module = tnn.Sequential(tnn.Linear(5, 8), tnn.Tanh(), tnn.Linear(8, 3)).double()
    module.load_state_dict({name: torch.tensor(values) for name, values in replica.arrays().items()})
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3, momentum=0.9)
    for step in range(6):
        rng = np.random.default_rng(step)
        x, targets = rng.normal(size=(16, 5)), rng.integers(3, size=16)
        replica.learn(Feed(np.arange(16), x, targets, scale=1 / 16), CrossEntropy())
        replica.update(lr=0.3, scale=1.0)
        replica.follow()
        optimizer.zero_grad()
        tnn.functional.cross_entropy(module(torch.tensor(x)), torch.tensor(targets)).backward()
        optimizer.step()
        average.update_parameters(module)
        theirs = average.module.state_dict()
        for name, values in replica.arrays(averaged=True).items():
            assert_close(values, theirs[name], f"{name} after step {step + 1}")
