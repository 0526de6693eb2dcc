"""Naive twins of augmentation: draws and pixels once more, from their definitions, in float64, one image at a time.

They share no code with the package but the settings. Images are (height, width, channels).
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence

import numpy as np

from hpdl_mpi.data import Augment
from tests import reference as ref

Array = np.ndarray

FLIP, CROP, JITTER, CUTOUT, RESIZED_CROP, MIXUP = 0, 1, 2, 3, 16, 64
"""Places of the draws in the stream of a sample."""


def block(key: int, sample_id: int, position: int) -> list[float]:
    """Return the four numbers of [0, 1) at one place of a sample's stream."""
    drawn = ref.words(int(key), int(sample_id), 4 * position + 4)
    return [word / 2**32 for word in drawn[-4:]]


def below(number: float, count: int) -> int:
    """Return an integer of 0..count-1 for a number of [0, 1)."""
    return int(number * count)


def flipped(key: int, sample_id: int) -> bool:
    """Return whether an image is mirrored."""
    return block(key, sample_id, FLIP)[0] >= 0.5


def crop_corner(key: int, sample_id: int, shape: Sequence[int], pad: int, size: Sequence[int]) -> tuple[int, int]:
    """Return the corner of a window in the image with its border."""
    top, left = block(key, sample_id, CROP)[:2]
    return below(top, shape[0] + 2 * pad - size[0] + 1), below(left, shape[1] + 2 * pad - size[1] + 1)


def resized_window(key: int, sample_id: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) as torchvision's RandomResizedCrop.get_params does, with our numbers."""
    ratios = math.log(3 / 4), math.log(4 / 3)
    for attempt in range(10):
        numbers = block(key, sample_id, RESIZED_CROP + attempt)
        area = height * width * (0.08 + (1.0 - 0.08) * numbers[0])
        ratio = math.exp(ratios[0] + (ratios[1] - ratios[0]) * numbers[1])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return below(numbers[2], height - h + 1), below(numbers[3], width - w + 1), h, w
    w, h = width, height
    if width / height < 3 / 4:
        h = round(w / (3 / 4))
    elif width / height > 4 / 3:
        w = round(h * (4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


def factors(key: int, sample_id: int, augment: Augment) -> tuple[float, float, float, float]:
    """Return factors of brightness, contrast and saturation, and the turn of the hue."""
    jitter, numbers = augment.jitter, block(key, sample_id, JITTER)
    strengths = jitter.brightness, jitter.contrast, jitter.saturation
    drawn = [max(0, 1 - s) + (1 + s - max(0, 1 - s)) * u for s, u in zip(strengths, numbers, strict=False)]
    return drawn[0], drawn[1], drawn[2], jitter.hue * (2 * numbers[3] - 1)


def part(key: int, sample_id: int, alpha: float) -> float:
    """Return a number of Beta(alpha, alpha) by Jöhnk (1964)."""
    for attempt in range(64):
        u, v = ((number + 2.0**-32) ** (1 / alpha) for number in block(key, sample_id, MIXUP + attempt)[:2])
        if 0 < u + v <= 1:
            return u / (u + v)
    raise AssertionError("as good as impossible")


def resize(image: Array, height: int, width: int) -> Array:
    """Bilinear, smoothed where it shrinks: every pixel is a mean of all, weighted by a triangle."""

    def matrix(out: int, size: int) -> Array:
        spacing = size / out
        middles = (np.arange(out)[:, None] + 0.5) * spacing
        weights = np.maximum(0.0, 1.0 - np.abs(np.arange(size) + 0.5 - middles) / max(spacing, 1.0))
        return weights / weights.sum(1, keepdims=True)

    return np.einsum("yh,hwc,xw->yxc", matrix(height, image.shape[0]), image, matrix(width, image.shape[1]))


def jitter(image: Array, drawn: Sequence[float], white: float) -> Array:
    """Change brightness, contrast, saturation and hue, in this order; each ends between 0 and white."""
    brightness, contrast, saturation, hue = drawn

    def blend(one: Array, other: Array | float, factor: float) -> Array:
        return np.clip(factor * one + (1 - factor) * other, 0.0, white)

    def grey(pixels: Array) -> Array:
        return pixels @ [0.2989, 0.587, 0.114] if pixels.shape[-1] == 3 else pixels[..., 0]

    image = blend(image, 0.0, brightness)
    image = blend(image, grey(image).mean(), contrast)
    if image.shape[-1] == 1:
        return image
    image = blend(image, grey(image)[..., None], saturation)
    pixels = [colorsys.rgb_to_hsv(*pixel) for pixel in (image / white).reshape(-1, 3)]
    turned = [colorsys.hsv_to_rgb((h + hue) % 1.0, s, v) for h, s, v in pixels]
    return white * np.array(turned).reshape(image.shape)


def middle(image: Array, augment: Augment) -> Array:
    """Return what of an image is evaluated."""
    if augment.size is None:
        return image
    height, width = h, w = augment.size
    if augment.resized_crop:
        scale = augment.central_fraction * min(image.shape[0] / h, image.shape[1] / w)
        h, w = round(scale * h), round(scale * w)
    top, left = round((image.shape[0] - h) / 2), round((image.shape[1] - w) / 2)
    border = max(0, -top, -left)
    padded = np.pad(image, ((border, border + 1), (border, border + 1), (0, 0)))
    window = padded[top + border : top + border + h, left + border : left + border + w]
    return resize(window, height, width) if augment.resized_crop else window


def augmented(
    image: Array, augment: Augment, key: int, sample_id: int, *, scale: float, mean: float, std: float, white: float
) -> Array:
    """Return one sample as it is learnt from, but for mixup."""
    image = image.astype(np.float64)
    height, width, _ = image.shape
    if augment.crop:
        (h, w), pad = augment.size, augment.pad
        top, left = crop_corner(key, sample_id, (height, width), pad, (h, w))
        image = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))[top : top + h, left : left + w]
    if augment.resized_crop:
        top, left, h, w = resized_window(key, sample_id, height, width)
        image = resize(image[top : top + h, left : left + w], *augment.size)
    if augment.flip and flipped(key, sample_id):
        image = image[:, ::-1]
    if augment.jitters:
        image = jitter(image, factors(key, sample_id, augment), white)
    image = (image * scale - mean) / std
    if augment.cutout:
        size, numbers = augment.cutout, block(key, sample_id, CUTOUT)
        top, left = (below(u, length) - size // 2 for u, length in zip(numbers, image.shape[:2], strict=False))
        image[max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = 0.0
    return image
