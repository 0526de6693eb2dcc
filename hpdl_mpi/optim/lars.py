"""Layer-wise rates for large batches: LARS."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpdl_mpi.base.errors import is_number, require
from hpdl_mpi.kernels import update as kernel
from hpdl_mpi.kernels.update import Terms
from hpdl_mpi.optim.optimizer import Chunks, Optimizer, checked_rate, no_terms


class LARS(Optimizer):
    """Momentum, with the gradient of each parameter in proportion to the parameter (You, Gitman and Ginsburg, 2017).

    Large batches allow large rates, but not for all layers alike. A parameter p with gradient g, decay included, takes
    ``trust |p| / (|g| + weight_decay |p|)`` of it. Parameters without decay (biases, normalisation) learn as in `SGD`.

    Parameters
    ----------
    lr : float
    momentum : float
    weight_decay : float
    trust : float
        How far a parameter moves in a step of rate 1, relative to its own norm.
    """

    slots = ("velocity",)
    layerwise = True

    def __init__(self, lr: float, *, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 1e-3) -> None:
        require("optimizer.trust", trust, is_number(trust) and trust > 0, "above 0")
        self.lr = checked_rate("lr", lr)
        self.momentum = checked_rate("momentum", momentum, below=1)
        self.weight_decay = checked_rate("weight_decay", weight_decay)
        self.trust = float(trust)

    def update(
        self,
        params: np.ndarray,
        grads: np.ndarray,
        slots: Sequence[np.ndarray],
        chunks: Chunks,
        *,
        step: int,
        lr: float,
        scale: float = 1.0,
        terms: Terms | None = None,
    ) -> None:
        assert terms is None, "layerwise updates need whole sums"
        length, slope = chunks.norms(params, grads)
        slope *= abs(scale)
        slope += self.weight_decay * length
        length *= self.trust
        rates = chunks.ratios(length, slope, chunks.decays)
        decay = (chunks.decays, scale, lr, self.weight_decay, 0.0)
        kernel.momentum(
            params, grads, slots[0], chunks.bounds, *decay, self.momentum, False, rates, no_terms(grads.dtype)
        )
