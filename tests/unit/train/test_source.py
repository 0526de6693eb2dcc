"""Where samples come from: what does not fit them is named by its key."""

from __future__ import annotations

import pytest

from hpdl_mpi import nn
from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data import Transform
from hpdl_mpi.train import Source
from tests.training_cases import write_table


@pytest.mark.parametrize(
    ("transforms", "key"),
    [
        ({"transform": Transform(mean=[0.0, 0.0])}, "data.transform.mean"),
        ({"transform": Transform(layout="chw")}, "data.transform.layout"),
        ({"target_transform": Transform(std=[1.0, 1.0])}, "data.target_transform.std"),
    ],
)
def test_a_transform_that_does_not_fit_the_samples_is_named_by_its_key(tmp_path, transforms, key):
    source = Source(write_table(tmp_path / "table.h5"), **transforms)
    with pytest.raises(InputError, match=f"^{key}: "):
        source.check(nn.Linear(1), nn.MeanSquaredError(), 1)
