"""Networks for images against their twins in PyTorch: loss, gradients, statistics and predictions in float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.nn import functional

from hpdl_mpi.bench import torch_resnet, torch_vision
from hpdl_mpi.models import MODELS
from hpdl_mpi.nn import CrossEntropy, Shape
from hpdl_mpi.optim import SGD
from hpdl_mpi.parallel.pipeline import Feed
from hpdl_mpi.parallel.replica import Replica
from tests.parity.convert import assert_close, assert_gradients_close, assert_layers_close, load, to_torch

pytestmark = pytest.mark.parity

BATCH = 4
CLASSES = 5

Arrays = dict[str, np.ndarray]


class Network(NamedTuple):
    """How small a model is made, and where a Linear layer reads images that were flattened, channels last."""

    size: int
    settings: dict[str, Any]
    flattened: dict[str, Shape]

    def in_pytorch(self, arrays: Arrays) -> Arrays:
        """Return our arrays with the columns of weights behind a Flatten in the order of channels first."""
        moved = {
            name: np.moveaxis(arrays[name].reshape(-1, *image), -1, 1).reshape(len(arrays[name]), -1)
            for name, image in self.flattened.items()
        }
        return arrays | moved


NETWORKS = {
    "alexnet": Network(95, {"hidden": 16, "dropout": 0.0}, {"classifier.1.weight": (6, 6, 256)}),
    "mobilenet_v2": Network(64, {"dropout": 0.0}, {}),
    "resnet18": Network(64, {}, {}),
    "resnet18_cifar": Network(16, {}, {}),
    "resnet20": Network(16, {}, {}),
    "resnet34": Network(64, {}, {}),
    "resnet50": Network(64, {}, {}),
    "resnet56": Network(16, {}, {}),
    "vgg11_bn": Network(64, {"hidden": 16, "dropout": 0.0}, {"classifier.0.weight": (7, 7, 512)}),
    "vgg16_bn": Network(64, {"hidden": 16, "dropout": 0.0}, {"classifier.0.weight": (7, 7, 512)}),
    "vgg16_cifar": Network(32, {}, {}),
}


@pytest.mark.parametrize(("name", "network"), NETWORKS.items(), ids=NETWORKS)
def test_network_learns_and_predicts_as_its_twin(name: str, network: Network) -> None:
    shape = (network.size, network.size, 3)
    ours = MODELS[name](outputs=CLASSES, **network.settings)
    replica = Replica(ours, shape, SGD(0.1), dtype=np.float64, seed=0)
    parameters, gradients = (replica.layout.views(flat) for flat in (replica.params, replica.grads))
    statistics = replica.statistics_layout.views(replica.statistics)
    twins = torch_resnet if name.startswith("resnet") else torch_vision
    module = getattr(twins, name)(outputs=CLASSES, **network.settings).double()
    load(module, network.in_pytorch(parameters) | statistics)
    rng = np.random.default_rng(0)
    x, targets, ids = rng.normal(size=(BATCH, *shape)), rng.integers(CLASSES, size=BATCH), np.arange(BATCH)

    sums = replica.learn(Feed(ids, x, targets, scale=1 / BATCH), CrossEntropy())
    loss = functional.cross_entropy(module(to_torch(x)), torch.tensor(targets))
    loss.backward()
    assert_close(np.array(sums.loss / BATCH), loss, "loss")
    assert_gradients_close(network.in_pytorch(gradients), module)
    assert_layers_close(statistics, {key: module.state_dict()[key] for key in statistics})
    with torch.no_grad():
        assert_close(replica.predict(x, ids), module.eval()(to_torch(x)), "predictions")
