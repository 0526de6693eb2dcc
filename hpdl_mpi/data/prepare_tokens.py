"""Tokens on their way to the model: numbers of a vocabulary, which are copied as they are."""

from __future__ import annotations

import numpy as np

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data.augment import Augment
from hpdl_mpi.data.transform import Shape, Transform

TOKEN = np.dtype(np.int64)
"""Type of tokens in a batch."""

IGNORED = -1
"""In place of a target where there is none; a loss passes it over."""


class TokenPreparation:
    """Stands where `Preparation` does, for a model that reads tokens.

    Parameters
    ----------
    transform, augment : Transform, Augment
        That must change nothing.
    stored_shape : tuple of int
        Of one sample.
    stored_dtype : dtype

    Raises
    ------
    InputError
        Something would change them, or they are not integers.
    """

    def __init__(self, transform: Transform, augment: Augment, stored_shape: Shape, stored_dtype: np.dtype) -> None:
        self.output_shape = stored_shape
        refuse_changes(transform, augment)
        if stored_dtype.kind not in "iub":
            raise InputError(
                "the model reads tokens",
                where="data.inputs",
                found=f"numbers of type {stored_dtype}",
                expected="integers",
                remedy="name an array of tokens, or take a model that reads values",
            )

    def apply(
        self, raw: np.ndarray, out: np.ndarray, key: np.uint64 | None = None, ids: np.ndarray | None = None
    ) -> None:
        """Copy a batch: raw integers (n, *stored_shape), out int64 of the same shape."""
        np.copyto(out, raw, casting="unsafe")


def refuse_changes(transform: Transform, augment: Augment) -> None:
    """Raise an `InputError` if tokens would be changed: they are taken as they are stored."""
    if transform != Transform():
        raise InputError("tokens are not transformed", where="data.transform", remedy="leave it out")
    if augment != Augment():
        raise InputError("tokens are not augmented", where="data.augment", remedy="leave it out")
