"""Numbers about a whole dataset, each measured in one fixed order, so that they do not depend on ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data.samples import Samples, Which
from hpdl_mpi.data.transform import Transform, num_features


def fitted(transform: Transform, dataset: Samples, which: Which = "inputs") -> Transform:
    """Return `transform` with `mean` and `std` in place of `standardize`; without it, the transform itself.

    They are the mean and the population standard deviation of ``x * scale`` per feature (per channel of an image),
    in float64 by the corrected two-pass algorithm of Chan, Golub and LeVeque (1983). A feature that does not vary has
    std 1. Local; reads all samples twice.

    Raises
    ------
    InputError
        A feature holds values that are not finite.
    """
    if not transform.standardize:
        return transform
    shape = dataset.input_shape if which == "inputs" else dataset.target_shape
    plain = replace(transform, standardize=False)
    features = num_features(plain.output_shape(shape))
    low, high = np.full(features, np.inf), np.full(features, -np.inf)
    total, count = np.zeros(features), 0
    for values in _feature_blocks(plain, dataset, which, features):
        total += values.sum(axis=0)
        count += len(values)
        np.minimum(low, values.min(axis=0), out=low)
        np.maximum(high, values.max(axis=0), out=high)
    if not np.isfinite(total).all():
        raise InputError(
            "not finite, so it cannot be standardised",
            where=f"{dataset.path}: {dataset.names[which]}",
            found=f"NaN or infinity in feature {int(np.argmin(np.isfinite(total)))}",
            remedy="run `hpdl data verify` to find the samples, and convert the data again without them",
        )
    constant = low == high
    mean = np.where(constant, low, total / count)
    squares, residual = np.zeros(features), np.zeros(features)
    for values in _feature_blocks(plain, dataset, which, features):
        values -= mean
        residual += values.sum(axis=0)
        squares += np.square(values, out=values).sum(axis=0)
    variance = (squares - residual * residual / count) / count
    std = np.sqrt(np.where(constant | (variance <= 0), 1.0, variance))
    return replace(plain, mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def _feature_blocks(transform: Transform, dataset: Samples, which: Which, features: int) -> Iterator[np.ndarray]:
    """Yield all values as float64 (num_values, features), transformed; the array is the caller's until the next."""
    for raw in dataset.blocks(which):
        values = np.empty((len(raw), *transform.output_shape(raw.shape[1:])))
        transform.apply(raw, values)
        yield values.reshape(-1, features)


def value_range(dataset: Samples, which: Which = "targets") -> tuple[float, float]:
    """Return the smallest and largest value, NaN if there is one; such as the lowest and highest class. Reads all."""
    ranges = [(values.min(), values.max()) for values in dataset.blocks(which)]
    low, high = np.array(ranges).T
    return low.min().item(), high.max().item()
