"""What a contender times."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Subject(NamedTuple):
    """A training step, ready to run."""

    step: Callable[..., object]
    """Does one whole step, and returns when it is done; what a turn asks for beside steps are its keywords."""
    num_parameters: int
    """Of the model: contenders that train the same model have the same number."""
