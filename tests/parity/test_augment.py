"""Windows of images, and targets of two classes, beside PyTorch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from hpdl_mpi.data import Augment, Transform
from hpdl_mpi.data.prepare import Preparation
from hpdl_mpi.kernels.mixup import MIXED
from hpdl_mpi.kernels.random import derive_key
from hpdl_mpi.nn import CrossEntropy
from tests import augment_reference as ref
from tests.parity.convert import assert_close
from tests.unit.nn.test_losses import evaluate

pytestmark = pytest.mark.parity

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("size", [(16, 16), (40, 64), (9, 5)])
def test_resized_windows_are_those_of_pytorch(size: tuple[int, int]) -> None:
    images, key = RNG.integers(0, 256, (6, 50, 30, 3)).astype(np.uint8), derive_key("augment", 0, 0)
    ids, out = np.arange(6), np.empty((6, *size, 3), np.float32)
    Preparation(Transform(), Augment(resized_crop=size), images.shape[1:], np.uint8, 6).apply(images, out, key, ids)
    for image, sample_id, found in zip(images, ids, out, strict=True):
        top, left, height, width = ref.resized_window(key, sample_id, 50, 30)
        window = torch.tensor(image[top : top + height, left : left + width].astype(np.float32)).permute(2, 0, 1)[None]
        theirs = functional.interpolate(window, size, mode="bilinear", antialias=True, align_corners=False)
        # Theirs are sums in float32 of up to some 20 x 20 weighted bytes, rows first and then columns.
        np.testing.assert_allclose(found, theirs[0].permute(1, 2, 0).numpy(), rtol=0, atol=255 * 40 * 2.0**-24)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_targets_of_two_classes_are_those_of_pytorch(smoothing: float) -> None:
    outputs = RNG.normal(scale=3.0, size=(3, 10))
    targets = np.array([(3, 0, 0.25), (0, 0, 0.6), (9, 4, 0.9)], MIXED)
    wanted = np.zeros((3, 10))
    for row, (label, other, part) in zip(wanted, targets, strict=True):
        row[label] += part
        row[other] += 1 - part
    sums, gradient = evaluate(CrossEntropy(smoothing), outputs, targets, scale=1 / 3)
    x = torch.tensor(outputs, requires_grad=True)
    mean = functional.cross_entropy(x, torch.tensor(wanted), label_smoothing=smoothing)
    mean.backward()
    assert_close(np.array(sums.loss / sums.weight), mean)
    assert_close(gradient, x.grad)
