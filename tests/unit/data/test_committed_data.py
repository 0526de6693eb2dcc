"""The datasets that come with the repository are what their README says."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpdl_mpi.data import Dataset, Windows
from hpdl_mpi.data.hdf5 import text_attribute
from hpdl_mpi.data.text import find_tokenizers
from hpdl_mpi.data.verify import verify
from hpdl_mpi.data.verify_text import verify_text

DATA = Path(__file__).parents[3] / "data"


@pytest.mark.parametrize(
    ("folder", "shape", "shards", "per_class"),
    [
        ("mnist/train", (28, 28, 1), 4, 1000),
        ("mnist/test", (28, 28, 1), 2, 200),
        ("cifar10/train", (32, 32, 3), 2, 100),
        ("cifar10/test", (32, 32, 3), 1, 20),
    ],
)
def test_images_are_balanced_sound_and_in_the_stated_shape(
    folder: str, shape: tuple[int, ...], shards: int, per_class: int
) -> None:
    reports = list(verify(DATA / folder))
    assert len(reports) == shards
    assert sum(report.class_counts for report in reports).tolist() == [per_class] * 10
    assert all(report.checksums for report in reports)
    dataset = Dataset.open(DATA / folder)
    assert (dataset.num_samples, dataset.input_shape) == (10 * per_class, shape)
    assert dataset.input_dtype == dataset.target_dtype == np.uint8


@pytest.mark.parametrize(
    ("name", "limit"), [("mnist", 3_000_000), ("cifar10", 4_000_000), ("housing", 500_000), ("shakespeare", 500_000)]
)
def test_data_stay_small(name: str, limit: int) -> None:
    assert sum(path.stat().st_size for path in (DATA / name).rglob("*.h5")) < limit


@pytest.mark.parametrize(("name", "count"), [("mnist", 10_000), ("cifar10", 1_000)])
def test_train_and_test_share_no_image(name: str, count: int) -> None:
    images = []
    for split in ("train", "test"):
        with_hashes = Dataset.open(DATA / name / split).blocks("inputs")
        images.append({hashlib.sha256(image.tobytes()).digest() for block in with_hashes for image in block})
    assert len(images[0]) == count
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


def test_shakespeare_is_split_as_others_do_and_reads_as_text() -> None:
    train, test = (Windows.open(DATA / "shakespeare" / split, context=256) for split in ("train", "test"))
    assert (train.num_tokens, test.num_tokens) == (1_003_854, 111_540)
    assert (train.num_samples, test.num_samples) == (3921, 435)
    assert train.input_dtype == np.uint8
    tokenizer = find_tokenizers(DATA / "shakespeare/train")["tokens"]
    assert tokenizer.vocabulary_size == 65
    first = np.empty((1, 256), np.uint8)
    train.read(np.array([0]), first, None)
    (report,) = verify_text(DATA / "shakespeare/train", {"tokens": tokenizer})
    assert report.checksums
    assert report.usage["tokens"].ids == 65
    assert tokenizer.decode(first).startswith("First Citizen:\nBefore we proceed any further, hear me speak.\n")


def test_checksums_of_the_readme_are_those_of_the_files() -> None:
    lines = re.findall(r"^([0-9a-f]{64})  (\S+\.h5)$", (DATA / "README.md").read_text(), re.MULTILINE)
    stated = {name: digest for digest, name in lines}
    found = {str(path.relative_to(DATA)): hashlib.sha256(path.read_bytes()).hexdigest() for path in DATA.rglob("*.h5")}
    assert stated == found
