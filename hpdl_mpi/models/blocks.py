"""What Transformers are made of, whatever their names are."""

from __future__ import annotations

from hpdl_mpi.base.errors import is_integer, require
from hpdl_mpi.nn import Dropout, Layer, Residual, Sequential

PADDING = 0
"""The token that stands for nothing, as in the data that the converter makes."""


def require_counts(**arguments: int) -> None:
    """Raise an `InputError` unless all arguments of a model that are given here are whole numbers of at least 1."""
    for name, value in arguments.items():
        require(name, value, is_integer(value, 1), "an integer of at least 1")


def require_heads(width: int, heads: int) -> None:
    """Raise an `InputError` unless a width is that of so many heads of one size."""
    require("width", width, width % heads == 0, f"a multiple of {heads}, the number of heads")


def drop(name: str, rate: float) -> dict[str, Layer]:
    """Return a layer that drops, by its name, if there is anything to drop."""
    return {name: Dropout(rate)} if rate else {}


def added(**body: Layer) -> Layer:
    """Return layers whose result is added to what came in; their names are those of the block that they are in."""
    return Residual(Sequential(**body), names=("", "shortcut"))
