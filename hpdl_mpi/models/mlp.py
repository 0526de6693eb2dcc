"""The multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence

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
    layers: list[Layer] = [Flatten()]
    for width in hidden:
        layers += [Linear(width), ReLU()] + ([Dropout(dropout)] if dropout else [])
    return Sequential(*layers, Linear(outputs))
