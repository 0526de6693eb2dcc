"""Between our arrays and PyTorch's: images are channels last here and channels first there."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

TOLERANCE = {np.float32: 1e-4, np.float64: 1e-10}
"""Relative to the largest element. Sums of n terms, d layers deep, add up some sqrt(n d) random errors of 10 u each,
ten being what Winograd's method costs. In single precision, u = 6e-8, that is 1e-4 for alexnet, n = 3,456 and d = 8,
and for resnet50, 576 and 50; 3e-6 is the most that was seen. In double precision, 1e-16, it is 2e-13, but means and
deviations of few samples amplify it: 1e-12 was seen."""


def to_torch(array: np.ndarray) -> Tensor:
    """Return a copy: images (n, h, w, c) to (n, c, h, w), weights (k, kh, kw, c) to (k, c, kh, kw)."""
    return torch.tensor(array.transpose(0, 3, 1, 2) if array.ndim == 4 else array)


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Return a copy, the inverse of `to_torch`."""
    array = tensor.detach().numpy().copy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


class Flatten(nn.Module):
    """Flattens images as we do, channels fastest."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).flatten(1)


def load(module: nn.Module, values: dict[str, np.ndarray]) -> None:
    """Give a module our parameters and statistics; their names must be the same."""
    missing, unexpected = module.load_state_dict(
        {name: to_torch(array) for name, array in values.items()}, strict=False
    )
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing), missing


def assert_close(found: np.ndarray, expected: Tensor | np.ndarray, what: str = "", size: float = 0.0) -> None:
    """Compare with `TOLERANCE`, by the precision of what was found; `size` is that of larger elements elsewhere."""
    expected = to_numpy(expected) if isinstance(expected, Tensor) else expected
    assert found.dtype == expected.dtype, what
    size = max(size, np.abs(expected).max(initial=0.0), np.finfo(found.dtype).tiny)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[found.dtype.type] * size, err_msg=what)


def assert_layers_close(found: dict[str, np.ndarray], expected: dict[str, Tensor]) -> None:
    """Compare arrays of the same names, relative to the largest element of all of a layer's.

    Some are zero but for rounding: behind a convolution that has no mean, or in front of a batch normalisation.
    """
    assert found.keys() == expected.keys()
    sizes: dict[str, float] = {}
    for name, array in expected.items():
        layer = name.rpartition(".")[0]
        sizes[layer] = max(sizes.get(layer, 0.0), float(array.abs().max()))
    for name, array in found.items():
        assert_close(array, expected[name], name, sizes[name.rpartition(".")[0]])


def assert_gradients_close(found: dict[str, np.ndarray], module: nn.Module) -> None:
    """Compare the gradients of all parameters."""
    assert_layers_close(found, {name: parameter.grad for name, parameter in module.named_parameters()})
