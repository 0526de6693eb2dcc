"""The datasets that come with the repository are what their README says."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpdl_mpi.data import Dataset
from hpdl_mpi.data.hdf5 import text_attribute
from hpdl_mpi.data.verify import verify

DATA = Path(__file__).parents[3] / "data"


@pytest.mark.parametrize(("split", "shards", "per_class"), [("train", 4, 1000), ("test", 2, 200)])
def test_mnist_is_balanced_sound_and_in_the_stated_shape(split: str, shards: int, per_class: int) -> None:
    reports = list(verify(DATA / "mnist" / split))
    assert len(reports) == shards
    assert sum(report.class_counts for report in reports).tolist() == [per_class] * 10
    assert all(report.checksums for report in reports)
    dataset = Dataset.open(DATA / "mnist" / split)
    assert (dataset.num_samples, dataset.input_shape) == (10 * per_class, (28, 28, 1))
    assert dataset.input_dtype == dataset.target_dtype == np.uint8


def test_mnist_stays_small() -> None:
    assert sum(path.stat().st_size for path in (DATA / "mnist").rglob("*.h5")) < 3_000_000


def test_mnist_train_and_test_share_no_image() -> None:
    images = []
    for split in ("train", "test"):
        with_hashes = Dataset.open(DATA / "mnist" / split).blocks("inputs")
        images.append({hashlib.sha256(image.tobytes()).digest() for block in with_hashes for image in block})
    assert len(images[0]) == 10_000
    assert not images[0] & images[1]


def test_housing_is_finite_named_and_split_without_loss() -> None:
    counts = [sum(report.num_samples for report in verify(DATA / "housing" / split)) for split in ("train", "test")]
    assert counts == [16_512, 4_128]
    dataset = Dataset.open(DATA / "housing/train")
    assert (dataset.input_shape, dataset.target_shape) == ((13,), ())
    assert dataset.input_dtype == dataset.target_dtype == np.float32
    with h5py.File(next((DATA / "housing/train").glob("*.h5"))) as file:
        names = text_attribute(file["x"], "features")
        assert text_attribute(file["y"], "target") == ["median_house_value"]
        x = file["x"][:]
    assert len(names) == 13
    assert names[7:9] == ["median_income", "ocean_proximity=<1H OCEAN"]
    assert np.all(x[:, 8:].sum(axis=1) == 1)


def test_checksums_of_the_readme_are_those_of_the_files() -> None:
    lines = re.findall(r"^([0-9a-f]{64})  (\S+\.h5)$", (DATA / "README.md").read_text(), re.MULTILINE)
    stated = {name: digest for digest, name in lines}
    found = {str(path.relative_to(DATA)): hashlib.sha256(path.read_bytes()).hexdigest() for path in DATA.rglob("*.h5")}
    assert stated == found
