"""A run from the same initial weights, on the same batches, goes where PyTorch goes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from hpdl_mpi.bench.torch_resnet import resnet20 as torch_resnet20
from hpdl_mpi.comm import SingleCommunicator
from hpdl_mpi.data import Augment, Batch, Dataset, Loader, Transform
from hpdl_mpi.models import resnet20
from hpdl_mpi.nn import CrossEntropy
from hpdl_mpi.optim import SGD
from hpdl_mpi.parallel import ProcessGrid, Replica, TrainingStep
from tests.parity.convert import load, to_torch

pytestmark = pytest.mark.parity

MOMENTUM, DECAY = 0.9, 5e-4
RATES = 0.1 * np.arange(1, 201) / 390
"""The warm-up of jobs/resnet20_cifar10.toml. At a full rate from the start any rounding doubles with each step."""


def batches(dtype: type, size: int) -> Iterator[Batch]:
    """Yield photographs, flipped and cropped, and their classes; over and over."""
    augment = Augment(flip=True, crop=32, pad=4)
    transform = Transform(scale=1 / 255, mean=[0.491, 0.482, 0.447], std=[0.247, 0.243, 0.262])
    with Dataset.open("data/cifar10/train") as dataset:
        loader = Loader(dataset, global_batch_size=size, transform=transform, augment=augment, dtype=dtype)
        for epoch in count():
            yield from loader.epoch(epoch)


def groups(replica: Replica, module: torch.nn.Module) -> list[dict]:
    """Return PyTorch's parameters in two groups: those that we let decay, and the others."""
    decays = {segment.name: segment.parameter.decay for segment in replica.layout.segments}
    named = list(module.named_parameters())
    return [
        {"params": [values for name, values in named if decays[name]], "weight_decay": DECAY},
        {"params": [values for name, values in named if not decays[name]]},
    ]


def losses(dtype: type, num_steps: int, size: int) -> np.ndarray:
    """Return the loss of each step of residual networks of 20 layers, (num_steps, 2): ours, and PyTorch's."""
    optimizer = SGD(RATES[0], momentum=MOMENTUM, nesterov=True, weight_decay=DECAY)
    replica = Replica(resnet20(), (32, 32, 3), optimizer, dtype=dtype, seed=0)
    learn = TrainingStep(replica, CrossEntropy(), ProcessGrid(SingleCommunicator(), {"pp": 1, "dp": 1}))
    module = torch_resnet20().to(torch.float64 if dtype is np.float64 else torch.float32)
    load(module, replica.arrays())
    theirs = torch.optim.SGD(groups(replica, module), lr=RATES[0], momentum=MOMENTUM, nesterov=True)
    found = np.empty((num_steps, 2))
    for step, batch in zip(range(num_steps), batches(dtype, size), strict=False):
        assert batch.inputs is not None
        sums = learn(batch, epoch=0, lr=RATES[step]).sums
        theirs.zero_grad()
        for group in theirs.param_groups:
            group["lr"] = RATES[step]
        loss = cross_entropy(module(to_torch(batch.inputs)), torch.tensor(batch.targets))
        loss.backward()
        theirs.step()
        found[step] = sums.loss / sums.weight, loss.item()
    return found


def test_fifty_steps_in_double_precision() -> None:
    ours, theirs = losses(np.float64, 50, 32).T
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert theirs[-10:].mean() < theirs[:10].mean()


def test_loss_after_many_steps_in_single_precision() -> None:
    ours, theirs = losses(np.float32, 200, 128)[150:].mean(axis=0)
    assert ours == pytest.approx(theirs, rel=0.02)
