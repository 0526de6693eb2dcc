"""Draws of augmentation: those of the naive twins, in their ranges, and as often as they should come."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hpdl_mpi.kernels import augment, mixup
from hpdl_mpi.kernels.color import jitter
from hpdl_mpi.kernels.random import derive_key
from tests import augment_reference as ref

KEY = derive_key("augment", 0, 0)
MANY = np.arange(4096)
EXACT = (1.0, np.zeros(3), np.ones(3))


def no_draws(count: int, height: int = 0, width: int = 0) -> np.ndarray:
    draws = np.zeros(count, augment.DRAW)
    draws["height"], draws["width"] = height, width
    return draws


def resized(images: np.ndarray, draws: np.ndarray, height: int, width: int) -> np.ndarray:
    taps = augment.num_taps(max(images.shape[1] / height, images.shape[2] / width))
    out = np.full((len(images), height, width, images.shape[3]), np.nan)
    scratch = np.empty((width, 2), np.int64), np.empty((width + 1, taps)), np.empty((images.shape[3], images.shape[2]))
    augment.resize(images, draws, *EXACT, out, *scratch)
    return out


def test_half_of_all_images_are_mirrored():
    draws = no_draws(len(MANY))
    augment.draw_flips(KEY, MANY, draws)
    # Five standard deviations of a binomial distribution.
    assert abs(draws["flip"].sum() - len(MANY) / 2) < 5 * math.sqrt(len(MANY)) / 2
    assert draws["flip"][:50].tolist() == [ref.flipped(KEY, i) for i in range(50)]


def test_windows_lie_anywhere_and_everywhere_alike():
    draws = no_draws(len(MANY), 8, 6)
    augment.draw_crops(KEY, MANY, 9, 6, 1, draws)
    counts = np.bincount(draws["top"] + 1, minlength=4)
    assert counts.size == 4  # tops of -1 to 2
    assert (np.abs(counts - len(MANY) / 4) < 5 * math.sqrt(len(MANY) * 3 / 16)).all()
    assert set(draws["left"]) == {-1, 0, 1}
    found = [(draw["top"] + 1, draw["left"] + 1) for draw in draws[:50]]
    assert found == [ref.crop_corner(KEY, i, (9, 6), 1, (8, 6)) for i in range(50)]


@pytest.mark.parametrize("shape", [(40, 30), (16, 16), (100, 9), (7, 64), (1, 1)])
def test_resized_windows_are_those_of_the_naive_twin_and_within_bounds(shape):
    draws = no_draws(500)
    augment.draw_resized_crops(KEY, MANY[:500], *shape, draws)
    assert [tuple(draw)[:4] for draw in draws[:100]] == [ref.resized_window(KEY, i, *shape) for i in range(100)]
    top, left, height, width = (draws[name] for name in ("top", "left", "height", "width"))
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (height >= 1).all()
    assert (width >= 1).all()
    assert (top + height <= shape[0]).all()
    assert (left + width <= shape[1]).all()
    # Each side is rounded by half a pixel at most.
    assert ((height - 0.5) / (width + 0.5) <= 4 / 3).all()
    assert ((width - 0.5) / (height + 0.5) <= 4 / 3).all()
    if min(shape) > 10:
        assert ((height + 0.5) * (width + 0.5) >= 0.08 * math.prod(shape)).all()


def test_the_middle_is_taken_where_no_window_fits():
    draws = no_draws(1)
    augment.draw_resized_crops(KEY, MANY[:1], 3, 1000, draws)  # the least area of 3 x 1000 has sides of 13 at least
    assert tuple(draws[0])[:4] == (0, 498, 3, 4)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0])
def test_parts_have_the_moments_of_the_beta_distribution(alpha):
    parts = np.empty(len(MANY))
    mixup.draw_parts(KEY, MANY, alpha, parts)
    assert parts[:40].tolist() == pytest.approx([ref.part(KEY, i, alpha) for i in range(40)], rel=1e-12, abs=1e-300)
    assert ((parts >= 0) & (parts <= 1)).all()
    variance = 1 / (4 * (2 * alpha + 1))
    # Five standard errors; the fourth moment of what lies in [0, 1] is below that of a coin, 1/16.
    assert abs(parts.mean() - 0.5) < 5 * math.sqrt(variance / len(MANY))
    assert abs(((parts - 0.5) ** 2).mean() - variance) < 5 * math.sqrt(1 / 16 / len(MANY))


@pytest.mark.parametrize(("height", "width"), [(20, 10), (9, 13), (5, 3), (31, 40), (1, 1)])
@pytest.mark.parametrize("layout", ["hwc", "chw"])
def test_resize_is_that_of_the_naive_twin(height, width, layout):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 20, 13, 3) if layout == "hwc" else (2, 3, 20, 13)).astype(np.uint8)
    images = images if layout == "hwc" else images.transpose(0, 2, 3, 1)
    draws = no_draws(2, 20, 13)
    draws[1] = (3, 2, 11, 7, 1, *draws[1].tolist()[5:])
    out = resized(images, draws, height, width)
    windows = images[0], images[1, 3:14, 2:9]
    expected = [ref.resize(windows[0], height, width), ref.resize(windows[1], height, width)[:, ::-1]]
    # Sums of at most 13 x 20 products of weights and bytes.
    np.testing.assert_allclose(out, expected, rtol=0, atol=256 * 40 * np.finfo(float).eps)


def test_a_window_of_the_size_of_the_output_is_copied_to_the_bit():
    images = np.random.default_rng(0).normal(size=(3, 8, 9, 2))
    draws = no_draws(3, 5, 6)
    draws["top"], draws["left"], draws["flip"] = 2, 1, [0, 1, 0]
    out = np.empty((3, 5, 6, 2))
    augment.crop(images, draws, *EXACT, out)
    assert np.array_equal(out, resized(images, draws, 5, 6))
    assert np.array_equal(out[0], images[0, 2:7, 1:7])


@pytest.mark.parametrize("drawn", [(1.4, 0.6, 1.3, 0.1), (0.6, 1.5, 0.2, -0.5), (1.0, 1.0, 1.0, 0.25), (0, 0, 0, 0)])
@pytest.mark.parametrize("channels", [1, 3])
def test_colours_are_those_of_the_naive_twin(drawn, channels):
    x = np.random.default_rng(0).uniform(0, 255, (1, 6, 5, channels))
    x[0, 0, :2] = [[0.0], [77.0]]  # black and grey
    draws = no_draws(1)
    for name, value in zip(("brightness", "contrast", "saturation", "hue"), drawn, strict=True):
        draws[name] = value
    expected = ref.jitter(x[0], drawn, 255.0) / 255 - 0.5
    jitter(x, draws, 255.0, 1 / 255, np.full(3, 0.5), np.ones(3))
    # Some 30 roundings of numbers up to 1.5, of which the turn of the hue makes six times as much.
    np.testing.assert_allclose(x[0], expected, rtol=0, atol=1e-13)


def test_neutral_factors_change_no_colour():
    original = np.random.default_rng(0).integers(0, 256, (1, 6, 5, 3)).astype(np.float64)
    draws = no_draws(1)
    for name in ("brightness", "contrast", "saturation"):
        draws[name] = 1.0
    x = original.copy()
    jitter(x, draws, 255.0, *EXACT)
    np.testing.assert_allclose(x, original, rtol=0, atol=255 * 8 * np.finfo(float).eps)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_pixel_that_is_no_number_is_seen_in_its_image(channels):
    x = np.full((2, 3, 3, channels), 0.5)
    x[1, 2, 0, 0] = np.nan
    jitter(x, no_draws(2), 1.0, *EXACT)
    assert np.isfinite(x[0]).all()
    assert np.isnan(x[1]).all()


def test_what_is_cut_out_is_a_square_that_may_stick_out():
    draws = no_draws(len(MANY))
    augment.draw_cutouts(KEY, MANY, 7, 5, 4, draws)
    x = np.ones((len(MANY), 7, 5, 1), np.float32)
    augment.cut_out(x, draws, 4)
    middles = draws["hole_top"] + 2, draws["hole_left"] + 2
    assert set(middles[0]) == set(range(7))
    assert set(middles[1]) == set(range(5))
    for i in range(50):
        y, u = middles[0][i], middles[1][i]
        expected = np.ones((7, 5))
        expected[max(y - 2, 0) : y + 2, max(u - 2, 0) : u + 2] = 0
        assert np.array_equal(x[i, ..., 0], expected)


def test_partners_are_neighbours_and_only_those_of_others_are_read_besides():
    batch = np.array([10, 11, 12, 13, 14, 15, 16])
    ids, partners = np.zeros(9, np.int64), np.zeros(7, np.int64)

    def pair(first: int, last: int) -> tuple[list[int], list[int]]:
        count = mixup.pair_up(batch, first, last, ids, partners)
        return ids[:count].tolist(), partners[: last - first].tolist()

    assert pair(0, 7) == (batch.tolist(), [1, 0, 3, 2, 5, 4, 6])
    assert pair(1, 4) == ([11, 12, 13, 10], [3, 2, 1])
    assert pair(1, 5) == ([11, 12, 13, 14, 10, 15], [4, 2, 1, 5])
    assert pair(2, 4) == ([12, 13], [1, 0])
    assert pair(6, 7) == ([16], [0])
    assert pair(3, 3) == ([], [])
