"""Adam and AdamW."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpdl_mpi.base.errors import is_number, require
from hpdl_mpi.kernels import update as kernel
from hpdl_mpi.optim.optimizer import Chunks, Optimizer


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
    ) -> None:
        require("optimizer.lr", lr, is_number(lr) and lr >= 0, "at least 0")
        require("optimizer.betas", betas, isinstance(betas, list | tuple) and len(betas) == 2, "two numbers")
        for beta in betas:
            require("optimizer.betas", beta, is_number(beta) and 0 <= beta < 1, "at least 0 and below 1")
        require("optimizer.eps", eps, is_number(eps) and eps > 0, "above 0")
        decays = is_number(weight_decay) and weight_decay >= 0
        require("optimizer.weight_decay", weight_decay, decays, "at least 0")
        self.lr = float(lr)
        self.betas = (float(betas[0]), float(betas[1]))
        self.eps = float(eps)
        self.weight_decay = float(weight_decay)

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
    ) -> None:
        decay = (self.weight_decay, self._decoupled)
        kernel.adam(
            params, grads, *slots, chunks.bounds, chunks.decays, scale, lr, *decay, *self.betas, self.eps, step + 1
        )


class AdamW(Adam):
    """Adam with decay applied to the parameters themselves, apart from the gradient (Loshchilov and Hutter, 2019)."""

    _decoupled = True
