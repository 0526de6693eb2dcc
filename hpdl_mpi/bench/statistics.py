"""What many turns say in few numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_QUANTILES = {"min": 0.0, "lower_quartile": 0.25, "median": 0.5, "upper_quartile": 0.75, "max": 1.0}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the least, the quartiles, the median and the greatest of some values."""
    return {name: float(np.quantile(values, part)) for name, part in _QUANTILES.items()}


def pairwise_ratio(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """Return the `spread` of theirs / ours round by round; what slowed a whole round down cancels."""
    return spread([one / other for one, other in zip(theirs, ours, strict=True)])
