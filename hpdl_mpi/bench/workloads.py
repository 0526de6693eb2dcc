"""What the models of a benchmark are fed, whoever runs them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Workload:
    """Synthetic samples of a model's shapes.

    Attributes
    ----------
    input_shape : tuple of int
        Of one sample; images are (height, width, channels).
    num_classes : int
    """

    input_shape: tuple[int, ...]
    num_classes: int

    @property
    def images(self) -> bool:
        """Whether the samples are images."""
        return len(self.input_shape) == 3

    def batch(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs, float32 (size, *input_shape) in [0, 1), and class numbers, int64 (size,); always the same."""
        generator = np.random.default_rng(0)
        inputs = generator.random((size, *self.input_shape), dtype=np.float32)
        return inputs, generator.integers(self.num_classes, size=size)


_CIFAR = Workload((32, 32, 3), 10)
_IMAGENET = Workload((224, 224, 3), 1000)

WORKLOADS = {
    "lenet": Workload((28, 28, 1), 10),
    "mlp": Workload((784,), 10),
    "mlp_deep": Workload((1024,), 1024),
    "alexnet": _IMAGENET,
    "mobilenet_v2": _IMAGENET,
    "resnet18": _IMAGENET,
    "resnet18_cifar": _CIFAR,
    "resnet20": _CIFAR,
    "resnet34": _IMAGENET,
    "resnet50": _IMAGENET,
    "resnet56": _CIFAR,
    "vgg11_bn": _IMAGENET,
    "vgg16_bn": _IMAGENET,
    "vgg16_cifar": _CIFAR,
}

LEARNING_RATE = 1e-5
"""So small that thousands of steps on one batch change nothing: no unit dies and leaves denormal numbers behind."""

MOMENTUM = 0.9
