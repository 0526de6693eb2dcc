"""Dropout belongs to the sample: not to its place in a batch, to a rank or to a micro-batch."""

from __future__ import annotations

import numpy as np
import pytest

from hpdl_mpi.nn import Dropout, Sequential
from tests.unit.nn.cases import LAYERS, Case, Rig

SIZE = 1000
ONES = np.ones((2, SIZE))


def rig(rate: float = 0.3) -> Rig:
    return Rig(Case(lambda: Dropout(rate), (SIZE,), lambda x, p: x))


def mask(ids: list[int], *, epoch: int = 0) -> np.ndarray:
    return rig().output(ONES[: len(ids)], np.array(ids), epoch=epoch)


def test_mask_follows_the_sample_to_any_place_and_batch() -> None:
    np.testing.assert_array_equal(mask([5, 9]), mask([9, 5])[::-1])
    np.testing.assert_array_equal(mask([5, 9])[1:], mask([9]))


def test_samples_epochs_and_layers_have_masks_of_their_own() -> None:
    elsewhere = Rig(Case(lambda: Sequential(Sequential(), Dropout(0.3)), (SIZE,), lambda x, p: x))
    masks = [*mask([5, 9]), *mask([5], epoch=1), *elsewhere.output(ONES[:1], np.array([5]))]
    for i, one in enumerate(masks):
        assert all((one != other).any() for other in masks[:i])


def test_kept_elements_are_as_many_as_the_rate_says_and_scaled_up() -> None:
    kept = mask(list(range(2)))
    assert set(np.unique(kept)) == {0.0, 1.0 / 0.7}
    # 2,000 draws: the share that is kept has a standard deviation of sqrt(0.3 0.7 / 2000) = 0.0102.
    assert np.mean(kept > 0) == pytest.approx(0.7, abs=4 * 0.0102)


def test_backward_drops_what_forward_dropped() -> None:
    one = rig()
    np.testing.assert_array_equal(one.step(ONES, ONES, np.array([5, 9])), mask([5, 9]))


def test_evaluation_drops_nothing() -> None:
    np.testing.assert_array_equal(rig().output(ONES, np.array([5, 9]), training=False), ONES)


def test_shape_of_a_sample_does_not_matter() -> None:
    case = LAYERS["Dropout"]
    image, row = Rig(case), Rig(case._replace(input_shape=(18,)))
    np.testing.assert_array_equal(image.output(image.x).reshape(3, 18), row.output(row.x))
