"""Augmentation of images: what is drawn for each sample, and the windows of pixels that follow from it.

What is drawn for a sample depends on (key, sample id) and on which draw it is, never on its batch or rank, nor on what
else is drawn. The kernels run in a loader's reader thread, on that thread alone, and take no memory. All round as they
are written, so that processors that differ compute the same; but windows to be resized, and the parts of
`kernels.mixup`, need exponentials and logarithms, which may differ in the last bit between machines whose mathematical
libraries do.
"""

from __future__ import annotations

import math

import numpy as np

from hpdl_mpi.kernels.jit import exact_kernel, inline
from hpdl_mpi.kernels.random import TO_UNIT, philox

DRAW = np.dtype(
    [(name, np.int64) for name in ("top", "left", "height", "width", "flip")]
    + [(name, np.float64) for name in ("brightness", "contrast", "saturation", "hue")]
    + [(name, np.int64) for name in ("hole_top", "hole_left")]
)
"""What is drawn for a sample: the window of its image, whether it is mirrored, factors of colours and the turn of the
hue, and the corner of what is cut out of the window."""

# Which draw is which: the position in the stream of a sample. What tries several times has a range.
_FLIP, _CROP, _JITTER, _CUTOUT, _RESIZED_CROP = (np.uint64(position) for position in (0, 1, 2, 3, 16))

_TRIES = 10
_LEAST_AREA = 0.08
_MOST_RATIO = 4 / 3

_31, _32 = np.uint64(31), np.uint64(32)


@inline
def _below(word, count):
    """Return an integer of 0..count-1 for a random 32-bit word; the bias is below count / 2^32."""
    return np.int64((word * np.uint64(count)) >> _32)


@inline
def _between(word, low, high):
    """Return a number of [low, high) for a random 32-bit word."""
    return low + (high - low) * (np.float64(word) * TO_UNIT)


@exact_kernel
def draw_flips(key, ids, draws):
    """Mirror every other image, by chance.

    Parameters
    ----------
    key : uint64
        Of the seed and the epoch; see `kernels.random.derive_key`.
    ids : int64 array, shape (n,)
        Sample ids.
    draws : DRAW array, shape (n,)
        Written: flip.
    """
    for i in range(ids.size):
        words = philox(key, np.uint64(ids[i]), _FLIP)
        draws[i].flip = np.int64(words[0] >> _31)


@exact_kernel
def draw_crops(key, ids, height, width, pad, draws):
    """Move windows to any place in an image with its border.

    Parameters
    ----------
    key, ids
        See `draw_flips`.
    height, width, pad : int
        Of the image without its border, and of that on each side.
    draws : DRAW array, shape (n,)
        With the windows' height and width, which fit. Written: top and left, -pad at least.
    """
    for i in range(ids.size):
        words = philox(key, np.uint64(ids[i]), _CROP)
        draws[i].top = _below(words[0], height + 2 * pad - draws[i].height + 1) - pad
        draws[i].left = _below(words[1], width + 2 * pad - draws[i].width + 1) - pad


@exact_kernel
def draw_resized_crops(key, ids, height, width, draws):
    """Draw windows of any place, size and shape in an image, as Szegedy et al. (2015) do.

    The area is 8 to 100 % of the image's and the ratio of the sides 3/4 to 4/3, as in torchvision's RandomResizedCrop.
    If ten tries do not fit, the window is the largest in the middle whose ratio is between these.

    Parameters
    ----------
    key, ids
        See `draw_flips`.
    height, width : int
        Of the image.
    draws : DRAW array, shape (n,)
        Written: top, left, height and width.
    """
    for i in range(ids.size):
        draws[i].top, draws[i].left, draws[i].height, draws[i].width = _resized_window(
            key, np.uint64(ids[i]), height, width
        )


@exact_kernel
def _resized_window(key, stream, height, width):
    for attempt in range(_TRIES):
        words = philox(key, stream, _RESIZED_CROP + np.uint64(attempt))
        area = height * width * _between(words[0], _LEAST_AREA, 1.0)
        ratio = math.exp(_between(words[1], -math.log(_MOST_RATIO), math.log(_MOST_RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return _below(words[2], height - h + 1), _below(words[3], width - w + 1), h, w
    w, h = min(width, round(height * _MOST_RATIO)), min(height, round(width * _MOST_RATIO))
    return (height - h) // 2, (width - w) // 2, h, w


@exact_kernel
def draw_jitter(key, ids, brightness, contrast, saturation, hue, draws):
    """Draw factors of max(0, 1 - strength) to 1 + strength, and turns of -hue to hue of a circle.

    Parameters
    ----------
    key, ids
        See `draw_flips`.
    brightness, contrast, saturation : float
        Strengths, at least 0.
    hue : float
        0 to 0.5.
    draws : DRAW array, shape (n,)
        Written: the four of these names.
    """
    for i in range(ids.size):
        words = philox(key, np.uint64(ids[i]), _JITTER)
        draws[i].brightness = _between(words[0], max(0.0, 1.0 - brightness), 1.0 + brightness)
        draws[i].contrast = _between(words[1], max(0.0, 1.0 - contrast), 1.0 + contrast)
        draws[i].saturation = _between(words[2], max(0.0, 1.0 - saturation), 1.0 + saturation)
        draws[i].hue = _between(words[3], -hue, hue)


@exact_kernel
def draw_cutouts(key, ids, height, width, size, draws):
    """Draw squares whose middle is any pixel of a window: they may stick out.

    Parameters
    ----------
    key, ids
        See `draw_flips`.
    height, width : int
        Of the window.
    size : int
        Side of the square.
    draws : DRAW array, shape (n,)
        Written: hole_top and hole_left.
    """
    for i in range(ids.size):
        words = philox(key, np.uint64(ids[i]), _CUTOUT)
        draws[i].hole_top = _below(words[0], height) - size // 2
        draws[i].hole_left = _below(words[1], width) - size // 2


@exact_kernel
def crop(images, draws, scale, mean, inverse_std, out):
    """out = (pixel * scale - mean) / std for the windows of images, mirrored where drawn; 0 is around an image.

    Parameters
    ----------
    images : array, shape (n, height, width, channels)
        Of any number type and any strides.
    draws : DRAW array, shape (n,)
        Windows of the size of `out`, which may begin before the image and end after it.
    scale : float
    mean, inverse_std : float64 array, shape (channels,)
    out : float array, shape (n, h, w, channels)
        Written.
    """
    _, height, width, channels = images.shape
    for i in range(out.shape[0]):
        top, left, flip = draws[i].top, draws[i].left, draws[i].flip != 0
        for y in range(out.shape[1]):
            v = top + y
            for x in range(out.shape[2]):
                u = left + (out.shape[2] - 1 - x if flip else x)
                inside = 0 <= v < height and 0 <= u < width
                for c in range(channels):
                    pixel = np.float64(images[i, v, u, c]) if inside else 0.0
                    out[i, y, x, c] = (pixel * scale - mean[c]) * inverse_std[c]


@exact_kernel
def resize(images, draws, scale, mean, inverse_std, out, places, weights, row):
    """As `crop`, for windows of any size inside their images: bilinear, and smoothed where pixels become fewer.

    A pixel of `out` is a weighted mean of those under a triangle as wide as two of its neighbours are apart, at least
    two pixels of the image: what Pillow and torchvision (with antialias) mean by bilinear. First rows are added up,
    then columns.

    Parameters
    ----------
    images, draws, scale, mean, inverse_std, out
        See `crop`.
    places : int64 array, shape (w, 2)
        Overwritten: the first column that each column of `out` sees, and how many.
    weights : float64 array, shape (w + 1, taps)
        Overwritten: theirs, and in the last row those of a row of `out`; `num_taps` says how many there can be.
    row : float64 array, shape (channels, width)
        Overwritten.
    """
    channels = images.shape[3]
    down = weights[out.shape[2]]
    for i in range(out.shape[0]):
        top, left, h, w, flip = draws[i].top, draws[i].left, draws[i].height, draws[i].width, draws[i].flip != 0
        for x in range(out.shape[2]):
            places[x, 0], places[x, 1] = _taps(out.shape[2] - 1 - x if flip else x, w / out.shape[2], w, weights[x])
        for y in range(out.shape[1]):
            first, count = _taps(y, h / out.shape[1], h, down)
            for c in range(channels):
                for u in range(w):
                    row[c, u] = down[0] * images[i, top + first, left + u, c]
                for k in range(1, count):
                    for u in range(w):
                        row[c, u] += down[k] * images[i, top + first + k, left + u, c]
            for x in range(out.shape[2]):
                for c in range(channels):
                    pixel = 0.0
                    for k in range(places[x, 1]):
                        pixel += weights[x, k] * row[c, places[x, 0] + k]
                    out[i, y, x, c] = (pixel * scale - mean[c]) * inverse_std[c]


def num_taps(spacing: float) -> int:
    """Return how many pixels a pixel of the output sees at most, where its neighbours are `spacing` pixels apart."""
    return math.ceil(2 * max(spacing, 1.0)) + 1


@exact_kernel
def _taps(place, spacing, size, weights):
    """Write the weights of the pixels of 0..size-1 that a pixel sees; return the first of them, and how many."""
    reach, middle = max(spacing, 1.0), (place + 0.5) * spacing
    first = max(int(middle - reach + 0.5), 0)
    count = min(int(middle + reach + 0.5), size) - first
    total = 0.0
    for k in range(count):
        weights[k] = max(0.0, 1.0 - abs(first + k + 0.5 - middle) / reach)
        total += weights[k]
    for k in range(count):
        weights[k] /= total
    return first, count


@exact_kernel
def cut_out(x, draws, size):
    """Set the squares that are drawn to zero, the mean of what is normalised.

    Parameters
    ----------
    x : float array, shape (n, h, w, channels)
        Changed in place.
    draws : DRAW array, shape (n,)
        Of `draw_cutouts`.
    size : int
        Side of the squares.
    """
    for i in range(x.shape[0]):
        top, left = draws[i].hole_top, draws[i].hole_left
        for y in range(max(top, 0), min(top + size, x.shape[1])):
            for u in range(max(left, 0), min(left + size, x.shape[2])):
                for c in range(x.shape[3]):
                    x[i, y, u, c] = 0.0
