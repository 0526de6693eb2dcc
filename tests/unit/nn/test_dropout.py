"""Dropout of every kind belongs to the sample: not to its place in a batch, to a rank or to a micro-batch."""

from __future__ import annotations

import numpy as np
import pytest

from hpdl_mpi.nn import Dropout, Dropout2d, Layer, Residual, Sequential, StochasticDepth
from tests.unit.nn.cases import LAYERS
from tests.unit.nn.rig import Case, Rig

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


IMAGES = np.random.default_rng(0).normal(size=(50, 3, 4, 40)) + 10.0
IMAGE_IDS = np.arange(50) * 3
WHOLE = {"Dropout2d": (Dropout2d, (1, 2)), "StochasticDepth": (StochasticDepth, (1, 2, 3))}
"""Layers that drop what these dimensions hold as a whole."""


def image_rig(layer: Layer) -> Rig:
    return Rig(Case(lambda: layer, IMAGES.shape[1:], lambda x, p: x))


@pytest.mark.parametrize(("layer", "dims"), WHOLE.values(), ids=WHOLE)
def test_channels_and_samples_are_dropped_as_a_whole(layer: type[Layer], dims: tuple[int, ...]) -> None:
    y = image_rig(layer(0.3)).output(IMAGES, IMAGE_IDS)
    kept = (y != 0).any(dims, keepdims=True)
    np.testing.assert_allclose(y, np.where(kept, IMAGES / 0.7, 0.0), rtol=1e-15)
    # A share of n draws has a standard deviation of sqrt(0.3 0.7 / n): 0.0102 of 2,000 channels, 0.065 of 50 samples.
    assert np.mean(kept) == pytest.approx(0.7, abs=4 * np.sqrt(0.21 / kept.size))
    assert 0 < np.mean(kept) < 1


@pytest.mark.parametrize(("layer", "dims"), WHOLE.values(), ids=WHOLE)
def test_what_is_dropped_as_a_whole_follows_the_sample(layer: type[Layer], dims: tuple[int, ...]) -> None:
    rig = image_rig(layer(0.3))
    y = rig.output(IMAGES, IMAGE_IDS)
    np.testing.assert_array_equal(rig.output(IMAGES[::-1], IMAGE_IDS[::-1]), y[::-1])
    np.testing.assert_array_equal(rig.output(IMAGES[7:9], IMAGE_IDS[7:9]), y[7:9])
    np.testing.assert_array_equal(rig.step(IMAGES, IMAGES, IMAGE_IDS), y)
    assert (rig.output(IMAGES, IMAGE_IDS, epoch=1) != y).any()
    np.testing.assert_array_equal(rig.output(IMAGES, IMAGE_IDS, training=False), IMAGES)


@pytest.mark.parametrize("layer", [Dropout, Dropout2d, StochasticDepth])
def test_what_is_dropped_is_gone_even_if_it_is_no_number(layer: type[Layer]) -> None:
    y = image_rig(layer(0.5)).output(np.full_like(IMAGES, np.nan), IMAGE_IDS)
    assert set(np.unique(np.nan_to_num(y, nan=1.0))) == {0.0, 1.0}


def test_residual_passes_a_dropped_sample_by_its_shortcut() -> None:
    rig = image_rig(Residual(Sequential(StochasticDepth(0.3))))
    y = rig.output(IMAGES, IMAGE_IDS)
    dropped = (y == IMAGES).all((1, 2, 3))
    assert 0 < dropped.sum() < 50
    np.testing.assert_allclose(y[~dropped], IMAGES[~dropped] * (1 + 1 / 0.7), rtol=1e-15)
    np.testing.assert_array_equal(rig.output(IMAGES, IMAGE_IDS, training=False), 2 * IMAGES)
