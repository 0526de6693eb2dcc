"""Every loss against PyTorch's: value and gradient."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional

from hpdl_mpi.nn import CrossEntropy, Huber, Loss, MeanSquaredError
from tests.parity.convert import assert_close
from tests.unit.nn.test_losses import evaluate

pytestmark = pytest.mark.parity

RNG = np.random.default_rng(0)
CLASSES = RNG.integers(10, size=6)
VALUES = RNG.normal(size=(6, 10))

LOSSES: dict[str, tuple[Loss, np.ndarray, Callable[..., torch.Tensor]]] = {
    "cross-entropy": (CrossEntropy(), CLASSES, functional.cross_entropy),
    "cross-entropy, smoothed": (
        CrossEntropy(0.2),
        CLASSES,
        lambda o, t: functional.cross_entropy(o, t, label_smoothing=0.2),
    ),
    "squared error": (MeanSquaredError(), VALUES, functional.mse_loss),
    "Huber": (Huber(0.5), VALUES, lambda o, t: functional.huber_loss(o, t, delta=0.5)),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("loss", "targets", "theirs"), LOSSES.values(), ids=LOSSES)
def test_loss_is_that_of_pytorch(
    loss: Loss, targets: np.ndarray, theirs: Callable[..., torch.Tensor], dtype: type
) -> None:
    outputs = RNG.normal(scale=3.0, size=(6, 10)).astype(dtype)
    targets = targets if targets.dtype == np.int64 else targets.astype(dtype)
    sums, gradient = evaluate(loss, outputs, targets, scale=1 / 6)
    x = torch.tensor(outputs, requires_grad=True)
    mean = theirs(x, torch.tensor(targets))
    mean.backward()
    assert_close(np.array(sums.loss / sums.weight, dtype), mean)
    assert_close(gradient, x.grad)
