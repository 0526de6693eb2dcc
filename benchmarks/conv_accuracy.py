"""Print how far float32 convolutions by Winograd's method, and in order, lie from float64: tables of docs/models.md.

Of the first, images are what a ReLU leaves of normally distributed numbers, weights He's initial values, and the
gradient normally distributed. Errors are root mean squares, relative to that of the result.

Of the second, images are normally distributed. Errors are the largest of any output of many convolutions, relative to
the standard deviation of the outputs.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from hpdl_mpi.nn import Context, MicroBatch, Pool
from hpdl_mpi.nn.conv_methods import ConvShape, Method, Unfolded, Winograd

BATCH = 4

SHAPES = (
    # height and width, channels, kernels, kernel size, stride
    (32, 64, 64, 3, 1),
    (8, 256, 256, 3, 1),
    (4, 512, 512, 3, 1),
    (16, 128, 256, 3, 2),
    (27, 64, 192, 5, 1),
)

KINDS = (
    # kernel size, stride
    (3, 1),
    (3, 2),
    (5, 1),
)
CHANNELS = (16, 32, 64, 128, 256, 512)
"""Of images and results alike."""
SIZES = (4, 7, 8, 14, 16, 28, 32, 56)
SEEDS = 3


def errors(size: int, channels: int, kernels: int, kernel_size: int, stride: int) -> dict[str, list[float]]:
    """Return the errors of the output, and of the gradients for input and weight, by name of the method."""
    rng = np.random.default_rng(0)
    x = np.maximum(rng.normal(size=(BATCH, size, size, channels)), 0)
    weight, shape = convolution_of(rng, size, channels, kernels, kernel_size, stride)
    dy = rng.normal(size=(BATCH, *shape.output, kernels))

    def results(method: type[Method], dtype: type) -> list[np.ndarray]:
        convolution, ctx = method(shape), Context(MicroBatch(Pool()))
        inputs, kernel, gradient = (array.astype(dtype) for array in (x, weight, dy))
        y, dx, dweight = (np.zeros_like(array) for array in (gradient, inputs, kernel))
        convolution.forward(inputs, kernel, kernel.reshape(-1)[:0], y, ctx)
        convolution.backward_input(gradient, kernel, dx, ctx)
        convolution.backward_weight(inputs, gradient, dweight, ctx)
        return [y, dx, dweight]

    truth = results(Unfolded, np.float64)
    return {
        method.name: [relative(*pair) for pair in zip(results(method, np.float32), truth, strict=True)]
        for method in (Winograd, Unfolded)
    }


def largest_errors(kernel_size: int, stride: int) -> dict[str, float]:
    """Return the largest error of an output by name of the method."""
    largest = {Winograd.name: 0.0, Unfolded.name: 0.0}
    for channels, size, seed in product(CHANNELS, SIZES, range(SEEDS)):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(1, size, size, channels))
        weight, shape = convolution_of(rng, size, channels, channels, kernel_size, stride)
        truth = output(Unfolded(shape), x, weight)
        for method in (Winograd, Unfolded):
            found = output(method(shape), x.astype(np.float32), weight.astype(np.float32))
            error = float(np.abs(found - truth).max() / truth.std())
            largest[method.name] = max(largest[method.name], error)
    return largest


def convolution_of(
    rng: np.random.Generator, size: int, channels: int, kernels: int, kernel_size: int, stride: int
) -> tuple[np.ndarray, ConvShape]:
    """Return weights of a convolution that pads images so that they keep their size, and its shape."""
    weight = rng.normal(size=(kernels, kernel_size, kernel_size, channels))
    weight *= np.sqrt(2 / weight[0].size)
    padding = kernel_size // 2
    side = (size + 2 * padding - kernel_size) // stride + 1
    return weight, ConvShape(weight.shape, (side, side), (stride, stride), (padding, padding))


def output(method: Method, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    y = np.zeros((len(x), *method.shape.output, len(weight)), x.dtype)
    method.forward(x, weight, weight.reshape(-1)[:0], y, Context(MicroBatch(Pool())))
    return y


def relative(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - truth) ** 2) / np.mean(truth**2)))


if __name__ == "__main__":
    print("size, channels, kernels, kernel size, stride: output, gradient of input, of weight")
    for workload in SHAPES:
        for method, found in errors(*workload).items():
            print(*workload, f"{method}:", *(f"{error:.1e}" for error in found))
    print(f"kernel size, stride: largest of {len(CHANNELS) * len(SIZES) * SEEDS} convolutions")
    for kind in KINDS:
        for method, error in largest_errors(*kind).items():
            print(*kind, f"{method}: {error:.1e}")
