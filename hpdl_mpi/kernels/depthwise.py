"""Convolution of each channel with a kernel of its own: x (n, h, w, c), weight (c, kh, kw, 1), y (n, ho, wo, c).

Inner loops run over channels, for which the weight is wanted as taps, (kh, kw, c).
"""

from __future__ import annotations

from numba import prange

from hpdl_mpi.kernels.jit import inline, kernel, parallel_kernel


@inline
def _window(place, stride, padding, kernel_size, size):
    """Return where the window of an output begins, and its first and last tap inside the image, in one dimension."""
    start = place * stride - padding
    return start, max(0, -start), min(kernel_size, size - start)


@kernel
def make_taps(weight, taps):
    """taps[r, s, c] = weight[c, r, s, 0]."""
    channels, height, width, _ = weight.shape
    for c in range(channels):
        for r in range(height):
            for s in range(width):
                taps[r, s, c] = weight[c, r, s, 0]


@kernel
def add_taps(parts, dweight):
    """dweight[c, r, s, 0] += sum of parts[t, r, s, c] over t in order."""
    channels, height, width, _ = dweight.shape
    for part in range(len(parts)):
        for c in range(channels):
            for r in range(height):
                for s in range(width):
                    dweight[c, r, s, 0] += parts[part, r, s, c]


@parallel_kernel
def forward(x, taps, bias, stride, padding, y):
    """y = convolution of x with taps, plus bias, shape (c,) or (0,)."""
    images, height, width, channels = x.shape
    _, ho, wo, _ = y.shape
    kh, kw, _ = taps.shape
    for image in prange(images):
        for i in range(ho):
            top, first, last = _window(i, stride[0], padding[0], kh, height)
            for j in range(wo):
                left, start, stop = _window(j, stride[1], padding[1], kw, width)
                total = y[image, i, j]
                for c in range(channels):
                    total[c] = bias[c] if bias.size else 0
                for r in range(first, last):
                    for s in range(start, stop):
                        source, tap = x[image, top + r, left + s], taps[r, s]
                        for c in range(channels):
                            total[c] += source[c] * tap[c]


@parallel_kernel
def backward_input(dy, taps, stride, padding, dx):
    """dx = gradient for the input of `forward`."""
    images, height, width, channels = dx.shape
    _, ho, wo, _ = dy.shape
    kh, kw, _ = taps.shape
    for image in prange(images):
        flat = dx[image].reshape(-1)
        for t in range(flat.size):
            flat[t] = 0
        for i in range(ho):
            top, first, last = _window(i, stride[0], padding[0], kh, height)
            for j in range(wo):
                left, start, stop = _window(j, stride[1], padding[1], kw, width)
                gradient = dy[image, i, j]
                for r in range(first, last):
                    for s in range(start, stop):
                        target, tap = dx[image, top + r, left + s], taps[r, s]
                        for c in range(channels):
                            target[c] += gradient[c] * tap[c]


@parallel_kernel
def backward_weight(x, dy, stride, padding, parts):
    """parts[t] += thread t's part of the gradient for the taps; parts (threads, kh, kw, c)."""
    images, height, width, channels = x.shape
    _, ho, wo, _ = dy.shape
    threads, kh, kw, _ = parts.shape
    for part in prange(threads):
        for image in range(part * images // threads, (part + 1) * images // threads):
            for i in range(ho):
                top, first, last = _window(i, stride[0], padding[0], kh, height)
                for j in range(wo):
                    left, start, stop = _window(j, stride[1], padding[1], kw, width)
                    gradient = dy[image, i, j]
                    for r in range(first, last):
                        for s in range(start, stop):
                            source, total = x[image, top + r, left + s], parts[part, r, s]
                            for c in range(channels):
                                total[c] += source[c] * gradient[c]
