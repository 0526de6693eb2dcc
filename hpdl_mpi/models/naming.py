"""Names of layers in a model, which are those of torchvision."""

from __future__ import annotations

from collections.abc import Iterable

from hpdl_mpi.nn import Layer


def numbered(prefix: str, layers: Iterable[Layer | None]) -> dict[str, Layer]:
    """Return layers as ``prefix.0``, ``prefix.1``, ...; None has a number too, but no layer.

    It stands for what the layer before does by the way, such as the ReLU behind a `BatchNorm2d`.
    """
    return {f"{prefix}.{i}": layer for i, layer in enumerate(layers) if layer is not None}
