"""The multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence

from hpdl_mpi.base.errors import integers, is_integer, require
from hpdl_mpi.nn import Dropout, Flatten, Layer, Linear, ReLU, Sequential


def mlp(hidden: Sequence[int] = (1024, 1024), outputs: int = 10, dropout: float = 0.0) -> Layer:
    """Return Linear and ReLU for each hidden width, then a Linear to the outputs; samples of any shape are flattened.

    Parameters
    ----------
    hidden : sequence of int
        Widths of the hidden layers.
    outputs : int
        Classes, or values of a regression.
    dropout : float
        Rate of the dropout after each hidden layer; none at 0.
    """
    widths = integers(hidden, 1)
    require("hidden", hidden, widths is not None, "a sequence of integers of at least 1, such as (64, 64)")
    layers: list[Layer] = [Flatten()]
    for width in widths or ():
        layers += [Linear(width), ReLU()] + ([Dropout(dropout)] if dropout else [])
    return Sequential(*layers, Linear(outputs))


def mlp_deep(depth: int = 24, width: int = 1024, outputs: int = 1024) -> Layer:
    """Return `depth` equal layers, Linear and ReLU, the last one without: a model to cut into pipelines.

    Parameters
    ----------
    depth : int
        Linear layers.
    width : int
        Of all but the last.
    outputs : int
    """
    require("depth", depth, is_integer(depth, 1), "an integer of at least 1")
    return mlp([width] * (depth - 1), outputs)
