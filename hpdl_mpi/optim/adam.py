"""Adam and AdamW."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpdl_mpi.base.errors import is_number, require
from hpdl_mpi.kernels import update as kernel
from hpdl_mpi.kernels.update import Terms
from hpdl_mpi.optim.optimizer import Chunks, Optimizer, checked_flag, checked_rate, no_terms


class Adam(Optimizer):
    """Steps of the gradient's mean over its root mean square (Kingma and Ba, 2015); decay is part of the gradient.

    Parameters
    ----------
    lr : float
    betas : (float, float)
        Decay of the means of g and of g^2.
    eps : float
        Added to the root mean square.
    weight_decay : float
    matrices_only : bool
        Whether decay leaves alone biases and all else that is no matrix, as for GPT-2.
    """

    slots = ("first", "second")
    _decoupled = False

    def __init__(
        self,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        matrices_only: bool = False,
    ) -> None:
        require("optimizer.betas", betas, isinstance(betas, list | tuple) and len(betas) == 2, "two numbers")
        require("optimizer.eps", eps, is_number(eps) and eps > 0, "above 0")
        self.lr = checked_rate("lr", lr)
        self.betas = (checked_rate("betas", betas[0], below=1), checked_rate("betas", betas[1], below=1))
        self.eps = float(eps)
        self.weight_decay = checked_rate("weight_decay", weight_decay)
        self.matrices_only = checked_flag("matrices_only", matrices_only)

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
        decay = (self.weight_decay, self._decoupled)
        rates = (scale, lr, *decay, *self.betas, self.eps, step + 1)
        decays = chunks.decays_of(matrices_only=self.matrices_only)
        kernel.adam(params, grads, *slots, chunks.bounds, decays, *rates, terms or no_terms(grads.dtype))


class AdamW(Adam):
    """Adam with decay applied to the parameters themselves, apart from the gradient (Loshchilov and Hutter, 2019)."""

    _decoupled = True
