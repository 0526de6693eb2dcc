"""How parameters start: counter-based draws keyed by the parameter's name, so every grid of ranks starts alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hpdl_mpi.base.errors import is_number, require
from hpdl_mpi.kernels.random import fill_normal, fill_uniform


class Initializer(Protocol):
    """Fills a flat array; `fan_in` and `fan_out` count the inputs and outputs that one weight array connects."""

    def __call__(self, out: np.ndarray, key: np.uint64, fan_in: int, fan_out: int) -> None: ...


class _Given:
    """Has finite numbers as its fields."""

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            require(f"nn.init.{type(self).__name__}: {key}", value, is_number(value), "a finite number")


@dataclass(frozen=True)
class Constant(_Given):
    """The same value everywhere."""

    value: float = 0.0

    def __call__(self, out: np.ndarray, key: np.uint64, fan_in: int, fan_out: int) -> None:
        out.fill(self.value)


@dataclass(frozen=True)
class Uniform(_Given):
    """U(low, high)."""

    low: float
    high: float

    def __call__(self, out: np.ndarray, key: np.uint64, fan_in: int, fan_out: int) -> None:
        fill_uniform(out, key, self.low, self.high)


@dataclass(frozen=True)
class Normal(_Given):
    """N(0, deviation^2)."""

    deviation: float

    def __call__(self, out: np.ndarray, key: np.uint64, fan_in: int, fan_out: int) -> None:
        fill_normal(out, key, self.deviation)


@dataclass(frozen=True)
class FanInUniform:
    """U(-b, b) with b = sqrt(1 / fan_in), PyTorch's start of Linear and Conv2d (LeCun et al., 1998)."""

    def __call__(self, out: np.ndarray, key: np.uint64, fan_in: int, fan_out: int) -> None:
        bound = math.sqrt(1.0 / fan_in)
        fill_uniform(out, key, -bound, bound)


@dataclass(frozen=True)
class HeUniform:
    """U(-b, b) of variance 2 / fan_in, for ReLU (He et al., 2015)."""

    def __call__(self, out: np.ndarray, key: np.uint64, fan_in: int, fan_out: int) -> None:
        bound = math.sqrt(6.0 / fan_in)
        fill_uniform(out, key, -bound, bound)


@dataclass(frozen=True)
class HeNormal:
    """N(0, 2 / fan_in), for ReLU (He et al., 2015)."""

    def __call__(self, out: np.ndarray, key: np.uint64, fan_in: int, fan_out: int) -> None:
        fill_normal(out, key, math.sqrt(2.0 / fan_in))


@dataclass(frozen=True)
class GlorotUniform:
    """U(-b, b) of variance 2 / (fan_in + fan_out), for tanh and sigmoid (Glorot and Bengio, 2010)."""

    def __call__(self, out: np.ndarray, key: np.uint64, fan_in: int, fan_out: int) -> None:
        bound = math.sqrt(6.0 / (fan_in + fan_out))
        fill_uniform(out, key, -bound, bound)


@dataclass(frozen=True)
class GlorotNormal:
    """N(0, 2 / (fan_in + fan_out)) (Glorot and Bengio, 2010)."""

    def __call__(self, out: np.ndarray, key: np.uint64, fan_in: int, fan_out: int) -> None:
        fill_normal(out, key, math.sqrt(2.0 / (fan_in + fan_out)))
