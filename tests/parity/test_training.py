"""The reference models against PyTorch's over several steps, with every optimizer, schedule and clipping."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn as tnn
from torch.nn import functional

from hpdl_mpi.models import lenet, mlp
from hpdl_mpi.nn import CrossEntropy, Layer, Shape
from hpdl_mpi.optim import SGD, Adam, AdamW, Constant, Cosine, Optimizer, Schedule, Step, clip_factor
from hpdl_mpi.parallel.pipeline import Feed
from hpdl_mpi.parallel.replica import Replica
from tests.parity.convert import Flatten, assert_close, assert_gradients_close, load, to_numpy, to_torch

pytestmark = pytest.mark.parity

BATCH = 16
STEPS = 6
Rates = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


def torch_lenet() -> tnn.Module:
    return tnn.Sequential(
        *(tnn.Conv2d(1, 32, 3, padding=1), tnn.ReLU(), tnn.MaxPool2d(2)),
        *(tnn.Conv2d(32, 64, 3, padding=1), tnn.ReLU(), tnn.MaxPool2d(2)),
        *(Flatten(), tnn.Linear(3136, 128), tnn.ReLU(), tnn.Linear(128, 10)),
    )


def torch_mlp() -> tnn.Module:
    return tnn.Sequential(
        Flatten(), tnn.Linear(784, 1024), tnn.ReLU(), tnn.Linear(1024, 1024), tnn.ReLU(), tnn.Linear(1024, 10)
    )


def small() -> Layer:
    return mlp(hidden=(20,), outputs=10)


def torch_small() -> tnn.Module:
    return tnn.Sequential(Flatten(), tnn.Linear(12, 20), tnn.ReLU(), tnn.Linear(20, 10))


MODELS: dict[str, tuple[Callable[[], Layer], Callable[[], tnn.Module], Shape]] = {
    "lenet": (lenet, torch_lenet, (28, 28, 1)),
    "mlp": (mlp, torch_mlp, (28, 28, 1)),
}


class Pair:
    """One model in both packages, with the same parameters and batches."""

    def __init__(
        self, ours: Layer, theirs: tnn.Module, shape: Shape, dtype: type, optimizer: Optimizer | None = None
    ) -> None:
        self.optimizer = optimizer or SGD(0.05, momentum=0.9)
        self.replica = Replica(ours, shape, self.optimizer, dtype=dtype, seed=0)
        self.module = theirs.to(torch.from_numpy(self.replica.params[:0]).dtype)
        load(self.module, self.replica.layout.views(self.replica.params))
        self.rng = np.random.default_rng(0)

    def learn(self) -> None:
        """Run the next batch forward and backward in both, and compare the losses."""
        x = self.rng.normal(size=(BATCH, *self.replica.input_shape)).astype(self.replica.dtype)
        targets = self.rng.integers(10, size=BATCH)
        sums = self.replica.learn(Feed(np.arange(BATCH), x, targets, scale=1 / BATCH), CrossEntropy())
        self.module.zero_grad()
        loss = functional.cross_entropy(self.module(to_torch(x)), torch.tensor(targets))
        loss.backward()
        assert_close(np.array(sums.loss / BATCH, self.replica.dtype), loss, "loss")

    def compare_gradients(self) -> None:
        assert_gradients_close(self.replica.layout.views(self.replica.grads), self.module)

    def compare_parameters(self) -> None:
        theirs = self.module.state_dict()
        for name, values in self.replica.layout.views(self.replica.params).items():
            assert_close(values, to_numpy(theirs[name]), name)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("ours", "theirs", "shape"), MODELS.values(), ids=MODELS)
def test_model_trains_as_in_pytorch(
    ours: Callable[[], Layer], theirs: Callable[[], tnn.Module], shape: Shape, dtype: type
) -> None:
    pair = Pair(ours(), theirs(), shape, dtype)
    optimizer = torch.optim.SGD(pair.module.parameters(), lr=0.05, momentum=0.9)
    for _ in range(STEPS):
        pair.learn()
        pair.compare_gradients()
        pair.replica.update(lr=0.05, scale=1.0)
        optimizer.step()
        pair.compare_parameters()


OPTIMIZERS = {
    "sgd": (SGD(0.1), torch.optim.SGD, {"lr": 0.1}),
    "momentum": (
        SGD(0.1, momentum=0.9, weight_decay=0.01),
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    ),
    "nesterov": (
        SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    ),
    "adam": (Adam(0.01, weight_decay=0.1), torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1}),
    "adamw": (
        AdamW(0.01, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1),
        torch.optim.AdamW,
        {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1},
    ),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("limit", [None, 0.3])
@pytest.mark.parametrize(("ours", "theirs", "settings"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizer_steps_as_in_pytorch(
    ours: Optimizer, theirs: type, settings: dict, limit: float | None, dtype: type
) -> None:
    pair = Pair(small(), torch_small(), (12,), dtype, ours)
    optimizer = theirs(pair.module.parameters(), **settings)
    for _ in range(STEPS):
        pair.learn()
        scale = clip_factor(math.sqrt(pair.replica.squared_gradient()), limit)
        if limit is not None:
            norm = tnn.utils.clip_grad_norm_(pair.module.parameters(), limit)
            assert norm > limit
        pair.replica.update(lr=ours.lr, scale=scale)
        optimizer.step()
        pair.compare_parameters()


def warmed(rates: Rates) -> Rates:
    """Return the same rates after a linear warm-up of four steps."""

    def build(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.25, total_iters=3)
        return torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, rates(optimizer)], [4])

    return build


def _constant(o: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.ConstantLR(o, factor=1.0)


def _step(o: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.StepLR(o, step_size=4, gamma=0.5)


def _cosine(num_steps: int) -> Rates:
    return lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=num_steps, eta_min=0.1 * 0.02)


SCHEDULES: dict[str, tuple[Schedule, Rates]] = {
    "constant": (Constant(), _constant),
    "step": (Step(every=4, gamma=0.5), _step),
    "cosine": (Cosine(final=0.1), _cosine(20)),
    "constant, warmed up": (Constant(warmup_steps=4), warmed(_constant)),
    "step, warmed up": (Step(every=4, gamma=0.5, warmup_steps=4), warmed(_step)),
    "cosine, warmed up": (Cosine(final=0.1, warmup_steps=4), warmed(_cosine(16))),
}


@pytest.mark.parametrize(("ours", "theirs"), SCHEDULES.values(), ids=SCHEDULES)
def test_schedule_is_that_of_pytorch(ours: Schedule, theirs: Rates) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.02)
    schedule = theirs(optimizer)
    for step in range(20):
        assert 0.02 * ours.factor(step, 20) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        schedule.step()
