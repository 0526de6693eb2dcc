"""The pixels of images (n, h, w, c) that a stride meets, the first of each row and column among them."""

from __future__ import annotations

from numba import prange

from hpdl_mpi.kernels.jit import parallel_kernel


@parallel_kernel
def gather_pixels(image, stride, pixels):
    """pixels[:] = image[:, :: stride[0], :: stride[1]]."""
    count, height, width, _ = pixels.shape
    for row in prange(count * height):
        number, i = row // height, row % height
        for j in range(width):
            source, target = image[number, i * stride[0], j * stride[1]], pixels[number, i, j]
            for c in range(target.size):
                target[c] = source[c]


@parallel_kernel
def spread_pixels(pixels, stride, image):
    """image[:, :: stride[0], :: stride[1]] = pixels, and 0 elsewhere."""
    count, height, width, _ = image.shape
    for row in prange(count * height):
        number, i = row // height, row % height
        for j in range(width):
            target = image[number, i, j]
            if i % stride[0] == 0 and j % stride[1] == 0:
                source = pixels[number, i // stride[0], j // stride[1]]
                for c in range(target.size):
                    target[c] = source[c]
            else:
                for c in range(target.size):
                    target[c] = 0
