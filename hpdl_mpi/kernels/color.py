"""Colours of images: brightness, contrast, saturation and hue, as torchvision's ColorJitter means them."""

from __future__ import annotations

import math

from hpdl_mpi.kernels.jit import exact_kernel, inline


@inline
def _mix(value, other, factor, white):
    """Return factor * value + (1 - factor) * other, held between black and white; NaN stays NaN."""
    mixed = factor * value + (1.0 - factor) * other
    return 0.0 if mixed < 0.0 else (white if mixed > white else mixed)


@inline
def _grey(r, g, b):
    """Return the luma of ITU-R BT.601, with torchvision's digits."""
    return 0.2989 * r + 0.587 * g + 0.114 * b


@inline
def _turn(r, g, b, turn):
    """Return a colour whose hue is turned by a part of the circle: that of HSV, which keeps most and least."""
    most, least = max(r, g, b), min(r, g, b)
    chroma = most - least
    whole = chroma if chroma > 0.0 else 1.0  # a grey pixel stays what it is
    hue = (g - b) / whole if most == r else ((b - r) / whole + 2.0 if most == g else (r - g) / whole + 4.0)
    hue += 6.0 * turn
    return _shade(hue + 5.0, most, chroma), _shade(hue + 3.0, most, chroma), _shade(hue + 1.0, most, chroma)


@inline
def _shade(place, most, chroma):
    """Return red, green or blue, which lies at 5, 3 or 1 sixths of the circle before `place`."""
    place -= 6.0 * math.floor(place * (1.0 / 6.0))
    return most - chroma * max(0.0, min(place, 4.0 - place, 1.0))


@exact_kernel
def jitter(x, draws, white, scale, mean, inverse_std):
    """Change the colours of images as drawn, in this order: brightness, contrast, saturation, hue; then normalise.

    Each ends between 0 and `white`. The contrast is that to the mean grey of the (brightened) image, the saturation
    that to the pixel's own grey. Images of one channel have no saturation and no hue.

    Parameters
    ----------
    x : float array, shape (n, height, width, 1 or 3)
        Pixels as they are stored; (pixel * scale - mean) / std afterwards.
    draws : DRAW array, shape (n,)
    white, scale : float
    mean, inverse_std : float64 array, shape (channels,)
    """
    n, height, width, channels = x.shape
    for i in range(n):
        brightness, contrast = draws[i].brightness, draws[i].contrast
        saturation, hue = draws[i].saturation, draws[i].hue
        middle = 0.0
        for y in range(height):
            for u in range(width):
                for c in range(channels):
                    x[i, y, u, c] = _mix(x[i, y, u, c], 0.0, brightness, white)
                if channels == 3:
                    middle += _grey(x[i, y, u, 0], x[i, y, u, 1], x[i, y, u, 2])
                else:
                    middle += x[i, y, u, 0]
        middle /= height * width
        for y in range(height):
            for u in range(width):
                if channels == 3:
                    r = _mix(x[i, y, u, 0], middle, contrast, white)
                    g = _mix(x[i, y, u, 1], middle, contrast, white)
                    b = _mix(x[i, y, u, 2], middle, contrast, white)
                    grey = _grey(r, g, b)
                    r = _mix(r, grey, saturation, white)
                    g = _mix(g, grey, saturation, white)
                    b = _mix(b, grey, saturation, white)
                    r, g, b = _turn(r, g, b, hue)
                    x[i, y, u, 0] = (r * scale - mean[0]) * inverse_std[0]
                    x[i, y, u, 1] = (g * scale - mean[1]) * inverse_std[1]
                    x[i, y, u, 2] = (b * scale - mean[2]) * inverse_std[2]
                else:
                    pixel = _mix(x[i, y, u, 0], middle, contrast, white)
                    x[i, y, u, 0] = (pixel * scale - mean[0]) * inverse_std[0]
