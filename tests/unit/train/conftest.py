"""What tests of training begin with."""

from __future__ import annotations

import pytest

from hpdl_mpi.comm import SingleCommunicator
from tests.training_cases import (
    fit_images,
    make_trainer,
    write_images,
)


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images.h5")


@pytest.fixture
def alone(images, tmp_path):
    """A run on one rank that the others are held against: its folder and its summary."""
    folder = tmp_path / "alone"
    return folder, fit_images(make_trainer(SingleCommunicator()), images, folder)
