"""Which samples of a source are kept, and in which split: seeded choices that no machine changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data.sampler import shuffled
from hpdl_mpi.kernels.random import derive_key


def split_test(num_samples: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids, int64, of training and test samples, both in a seeded random order.

    A `fraction` of 0 keeps all samples for training, in their own order.

    Raises
    ------
    InputError
        One of the splits would be empty.
    """
    if fraction == 0:
        return np.arange(num_samples), np.arange(0)
    num_test = round(num_samples * fraction)
    if not 0 < num_test < num_samples:
        raise InputError(
            "a split would be empty",
            where="--test-fraction",
            found=f"{fraction} of {num_samples} samples",
            expected="at least one sample for training and one for test",
        )
    order = shuffled(np.arange(num_samples), derive_key("test split", seed))
    return order[num_test:], order[:num_test]


def balanced(labels: np.ndarray, per_class: int, seed: int, names: Sequence[str] = ()) -> np.ndarray:
    """Return the ids, int64 (num_classes * per_class,), of the same number of samples of each class.

    Each class gives the first `per_class` of a seeded order; the classes take turns in the result. `names` are those
    of the classes, for a message.

    Raises
    ------
    InputError
        A class has fewer samples.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < per_class:
        label = int(classes[counts.argmin()])
        name = f" ({names[label]})" if 0 <= label < len(names) else ""
        raise InputError(
            "a class has too few samples",
            where="--per-class",
            found=f"{counts.min()} samples of class {label}{name}",
            expected=f"at least {per_class}",
        )
    order = shuffled(np.arange(len(labels)), derive_key("per class", seed))
    return np.stack([order[labels[order] == label][:per_class] for label in classes], axis=1).ravel()
