from __future__ import annotations

import numpy as np
import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data import Dataset, Transform, fitted, value_range


def test_standardize_measures_each_feature_in_float64(write_file) -> None:
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(5000, 3)) * [1.0, 50.0, 0.01] + [1e4, -3.0, 0.0]).astype(np.float32)
    path = write_file("a.h5", {"x": x, "y": np.zeros(5000, np.float32)}, chunks=True)
    transform = fitted(Transform(scale=2.0, standardize=True), Dataset.open(path))
    values = x.astype(np.float64) * 2.0
    # Sums of 5000 float64 terms: relative error below 5000 eps = 1e-12.
    np.testing.assert_allclose(transform.mean, values.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(transform.std, values.std(axis=0), rtol=1e-12)
    assert transform.scale == 2.0
    assert not transform.standardize


def test_standardize_of_images_is_per_channel_after_the_layout(write_file) -> None:
    x = np.random.default_rng(2).integers(0, 256, (40, 3, 5, 6)).astype(np.uint8)
    path = write_file("a.h5", {"x": x, "y": np.zeros(40, np.uint8)})
    transform = fitted(Transform(scale=1 / 255, standardize=True, layout="chw"), Dataset.open(path))
    np.testing.assert_allclose(transform.mean, (x / 255).mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(transform.std, (x / 255).std(axis=(0, 2, 3)), rtol=1e-12)
    assert transform.layout == "chw"


def test_a_feature_without_variance_gets_std_one_and_becomes_zero(write_file) -> None:
    x = np.full((1000, 2), 0.1, np.float32)  # 0.1 has no exact sum: a plain variance would be tiny, not zero
    x[:, 1] = np.arange(1000)
    dataset = Dataset.open(write_file("a.h5", {"x": x, "y": np.zeros(1000, np.float32)}))
    transform = fitted(Transform(standardize=True), dataset)
    out = np.empty((1000, 2), np.float32)
    transform.apply(x, out)
    assert transform.std[0] == 1.0
    assert np.all(out[:, 0] == 0.0)


def test_targets_can_be_standardized(write_file) -> None:
    y = np.arange(10, dtype=np.float32) * 1000
    dataset = Dataset.open(write_file("a.h5", {"x": np.zeros((10, 1), np.float32), "y": y}))
    transform = fitted(Transform(standardize=True), dataset, "targets")
    assert transform.mean == (4500.0,)
    assert transform.std == pytest.approx((np.std(y.astype(np.float64)),))


def test_without_standardize_nothing_is_read(tmp_path) -> None:
    transform = Transform(mean=1.0)
    assert fitted(transform, None) is transform


def test_standardize_refuses_nan_and_names_the_feature(write_file) -> None:
    x = np.ones((20, 4), np.float32)
    x[7, 2] = np.nan
    dataset = Dataset.open(write_file("a.h5", {"x": x, "y": np.zeros(20, np.float32)}))
    with pytest.raises(InputError, match=r"x: not finite.*NaN or infinity in feature 2.*hpdl data verify"):
        fitted(Transform(standardize=True), dataset)


def test_value_range_reads_all_shards(write_shards) -> None:
    folder, _, y = write_shards([10, 3, 8])
    assert value_range(Dataset.open(folder)) == (y.min(), y.max())
