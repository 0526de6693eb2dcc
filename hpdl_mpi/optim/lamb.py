"""Layer-wise rates for large batches: LAMB."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpdl_mpi.kernels import update as kernel
from hpdl_mpi.kernels.update import Terms
from hpdl_mpi.optim.adam import AdamW
from hpdl_mpi.optim.optimizer import Chunks


class LAMB(AdamW):
    """AdamW, with the step of each parameter in proportion to the parameter (You et al., 2020).

    A parameter p for which AdamW's direction is u, decay included, takes ``|p| / |u|`` of it. Parameters without decay
    (biases, normalisation) learn as in `AdamW`, whose arguments it takes.
    """

    layerwise = True

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
        decays = chunks.decays_of(matrices_only=self.matrices_only)
        common = (chunks.bounds, decays, scale, self.weight_decay, *self.betas, self.eps, step + 1)
        kernel.adam_direction(params, grads, *slots, *common)
        length, direction = chunks.norms(params, grads)
        kernel.follow(params, grads, chunks.bounds, chunks.ratios(length, direction, decays), lr)
