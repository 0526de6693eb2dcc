"""What the models of a benchmark are fed, whoever runs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Workload:
    """Synthetic samples of a model's shapes.

    Attributes
    ----------
    input_shape : tuple of int
        Of one sample; images are (height, width, channels), texts (steps,), several texts a tuple of such.
    num_classes : int
    vocabularies : tuple of int
        Of texts: the tokens of each are from 1 to below this, and each of the last one has a class.
    """

    input_shape: tuple[Any, ...]
    num_classes: int
    vocabularies: tuple[int, ...] = ()

    @property
    def images(self) -> bool:
        """Whether the samples are images."""
        return not self.vocabularies and len(self.input_shape) == 3

    def batch(self, size: int) -> tuple[Any, np.ndarray]:
        """Return inputs and class numbers, int64; always the same.

        Inputs are float32 (size, *input_shape) in [0, 1) with a class each; or tokens, int64, or a tuple of
        such, with a class for each token.
        """
        generator = np.random.default_rng(0)
        if self.vocabularies:
            shapes = self.input_shape if len(self.vocabularies) > 1 else (self.input_shape,)
            sizes = zip(self.vocabularies, shapes, strict=True)
            texts = tuple(generator.integers(1, vocabulary, size=(size, *shape)) for vocabulary, shape in sizes)
            classes = generator.integers(self.num_classes, size=texts[-1].shape)
            return texts if len(texts) > 1 else texts[0], classes
        inputs = generator.random((size, *self.input_shape), dtype=np.float32)
        return inputs, generator.integers(self.num_classes, size=size)


_CIFAR = Workload((32, 32, 3), 10)
_IMAGENET = Workload((224, 224, 3), 1000)


def _text(vocabulary: int, steps: int) -> Workload:
    return Workload((steps,), vocabulary, (vocabulary,))


WORKLOADS = {
    "gpt2_124m": _text(50257, 256),
    "gpt_nano": _text(65, 64),
    "gpt_small": _text(256, 256),
    "lstm_lm": _text(256, 64),
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
    "seq2seq": Workload(((24,), (24,)), 64, (32, 64)),
    "vgg11_bn": _IMAGENET,
    "vgg16_bn": _IMAGENET,
    "vgg16_cifar": _CIFAR,
}

LEARNING_RATE = 1e-5
"""So small that thousands of steps on one batch change nothing: no unit dies and leaves denormal numbers behind."""

MOMENTUM = 0.9
