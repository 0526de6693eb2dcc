"""What happens to stored numbers before the network sees them: one affine map and one change of layout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, get_args

import numpy as np

from hpdl_mpi.base.errors import InputError, finite_numbers, is_flag, is_number, is_one_of, require
from hpdl_mpi.kernels.cast import affine, affine_channels_last, affine_inverse

Layout = Literal["hwc", "hw", "chw"]
Shape = tuple[int, ...]


_LEAST_STD = float(np.finfo(np.float32).tiny)
"""What it divides would not be numbers below this."""


@dataclass(frozen=True)
class Transform:
    """The map ``(x * scale - mean) / std`` and the layout of stored samples. Immutable and hashable.

    Parameters
    ----------
    scale : float
        Not zero.
    mean, std : float or sequence of float, optional
        One number, or one per feature: per channel of an image, per entry of a flat sample. `std` is above zero.
        Absent means 0 and 1.
    standardize : bool
        Take `mean` and `std` from the training data; `fitted` returns the transform that does.
    layout : {"hwc", "hw", "chw"}
        How a sample is stored. ``"hwc"``: as the network sees it (images with channels last, or anything that is
        not an image). ``"hw"``: a grey image without a channel dimension, which gains one of length 1. ``"chw"``:
        channels first, transposed to channels last.

    Raises
    ------
    InputError
        A number that is not finite, a `std` not above zero, no number at all, or `standardize` together with `mean` or
        `std`.
    """

    scale: float = 1.0
    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None
    standardize: bool = False
    layout: Layout = "hwc"

    def __post_init__(self) -> None:
        # plain numbers and tuples, whatever came in: hashable, and JSON
        require("transform.scale", self.scale, is_number(self.scale) and self.scale != 0, "a finite number, not 0")
        object.__setattr__(self, "scale", float(self.scale))
        for name, bound, expected in (
            ("mean", -math.inf, "a finite number, or one per feature"),
            ("std", _LEAST_STD, "a finite number above zero, or one per feature: 1 for one that does not vary"),
        ):
            if (value := getattr(self, name)) is not None:
                plain = value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
                single = is_number(plain)
                numbers = finite_numbers([plain] if single else plain) or ()
                require(f"transform.{name}", value, bool(numbers) and min(numbers) > bound, expected)
                object.__setattr__(self, name, numbers[0] if single else numbers)
        require("transform.layout", self.layout, is_one_of(self.layout, get_args(Layout)), "hwc, hw or chw")
        require("transform.standardize", self.standardize, is_flag(self.standardize), "true or false")
        object.__setattr__(self, "standardize", bool(self.standardize))
        if self.standardize and not (self.mean is None and self.std is None):
            raise InputError(
                "mean and std are measured when standardize is set",
                where="transform.standardize",
                remedy="remove standardize, or mean and std",
            )

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of a sample for the network (channels last), from that of a stored one; pure.

        Raises
        ------
        InputError
            The layout, or the length of `mean` or `std`, does not fit samples of this shape.
        """
        dims = {"hwc": None, "hw": 2, "chw": 3}[self.layout]
        if dims is not None and len(input_shape) != dims:
            raise InputError(
                f"layout {self.layout!r} does not fit the samples",
                where="transform.layout",
                found=f"samples of shape {input_shape}",
                expected="(height, width)" if dims == 2 else "(channels, height, width)",
            )
        shape = {
            "hwc": input_shape,
            "hw": (*input_shape, 1),
            "chw": (*input_shape[1:], *input_shape[:1]),
        }[self.layout]
        features = num_features(shape)
        for name in ("mean", "std"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) not in (1, features):
                possible = f"1 or {features}" if features > 1 else "1"
                raise InputError(
                    f"wrong number of values for samples of shape {shape}",
                    where=f"transform.{name}",
                    found=f"{len(value)} values",
                    expected=f"{possible}, one per {'channel' if len(shape) > 1 else 'feature'}",
                )
        return shape

    def apply(self, raw: np.ndarray, out: np.ndarray) -> None:
        """Transform a batch in one pass: raw (n, *input_shape) of any number type, out (n, *output_shape) of floats.

        Both are C-contiguous; `out` is overwritten. Arithmetic is float64, rounded once into `out`; nothing is
        allocated after the first call for a shape.
        """
        n, shape = raw.shape[0], raw.shape[1:]
        mean, _, inverse_std = self._tables(shape)
        if self.layout == "chw":
            channels, pixels = shape[0], shape[1] * shape[2]
            planes, out = raw.reshape(n, channels, pixels), out.reshape(n, pixels, channels)
            affine_channels_last(planes, self.scale, mean, inverse_std, out)
        else:
            size = math.prod(shape)
            affine(raw.reshape(n, size), self.scale, mean, inverse_std, out.reshape(n, size))

    def inverse(self, values: np.ndarray) -> None:
        """Undo the affine map in place, such as on predictions: values float (n, *shape), C-contiguous, any layout."""
        mean, std, _ = replace(self, layout="hwc")._tables(values.shape[1:])
        affine_inverse(values.reshape(values.shape[0], mean.size), self.scale, mean, std)

    def images(self, raw: np.ndarray) -> np.ndarray:
        """Return a view with channels last, (n, height, width, channels), of a batch of images as they are stored."""
        if self.layout == "chw":
            return raw.transpose(0, 2, 3, 1)
        return raw[..., np.newaxis] if self.layout == "hw" else raw

    def channel_tables(self, channels: int) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and 1/std of each channel, float64 (channels,); made once, and not to be written to."""
        mean, _, inverse_std = replace(self, layout="hwc")._tables((channels,))
        return mean, inverse_std

    def _tables(self, shape: Shape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self.standardize:
            raise ValueError("mean and std are not measured yet: use statistics.fitted(transform, dataset)")
        return _tables(self, shape)


def num_features(shape: Shape) -> int:
    """Return the number of means that a sample of this shape has: channels of an image, entries of a vector."""
    return shape[-1] if shape else 1


@lru_cache(maxsize=32)
def _tables(transform: Transform, input_shape: Shape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, std and 1/std in float64: per channel for "chw", else repeated to the size of a sample.

    Repeated, because one long inner loop over a sample is a vector loop whatever the number of channels.
    """
    shape = transform.output_shape(input_shape)
    target: Shape = (num_features(shape),) if transform.layout == "chw" else shape
    mean = _spread(transform.mean, 0.0, target)
    std = _spread(transform.std, 1.0, target)
    return mean, std, 1.0 / std


def _spread(value: float | Sequence[float] | None, absent: float, shape: Shape) -> np.ndarray:
    """Return a value for each entry of `shape`, flat, float64: of one number, or of one per entry of the last dim."""
    values = np.atleast_1d(np.asarray(absent if value is None else value, np.float64))
    return np.broadcast_to(values, shape or (1,)).flatten()
