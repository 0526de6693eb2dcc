"""Print how far float32 convolutions by Winograd's method, and in order, lie from float64: the table of docs/models.md.

Images are what a ReLU leaves of normally distributed numbers, weights He's initial values, and the gradient normally
distributed. Errors are root mean squares, relative to that of the result.
"""

from __future__ import annotations

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


def errors(size: int, channels: int, kernels: int, kernel_size: int, stride: int) -> dict[str, list[float]]:
    """Return the errors of the output, and of the gradients for input and weight, by name of the method."""
    rng = np.random.default_rng(0)
    padding = kernel_size // 2
    side = (size + 2 * padding - kernel_size) // stride + 1
    x = np.maximum(rng.normal(size=(BATCH, size, size, channels)), 0)
    weight = rng.normal(size=(kernels, kernel_size, kernel_size, channels))
    weight *= np.sqrt(2 / weight[0].size)
    dy = rng.normal(size=(BATCH, side, side, kernels))
    shape = ConvShape(weight.shape, (side, side), (stride, stride), (padding, padding))

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


def relative(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - truth) ** 2) / np.mean(truth**2)))


if __name__ == "__main__":
    print("size, channels, kernels, kernel size, stride: output, gradient of input, of weight")
    for workload in SHAPES:
        for method, found in errors(*workload).items():
            print(*workload, f"{method}:", *(f"{error:.1e}" for error in found))
