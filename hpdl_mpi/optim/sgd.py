"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.kernels import update as kernel
from hpdl_mpi.kernels.update import Terms
from hpdl_mpi.optim.optimizer import Chunks, Optimizer, checked_flag, checked_rate, no_terms


class SGD(Optimizer):
    """Gradient descent on batches of any size, with momentum, Nesterov's form, L2 and L1 regularisation.

    Parameters
    ----------
    lr : float
    momentum : float
        0 keeps no state.
    nesterov : bool
    weight_decay : float
        L2: adds ``weight_decay * p`` to the gradient.
    l1 : float
        L1: adds ``l1 * sign(p)`` to the gradient.
    matrices_only : bool
        Whether decay, of both kinds, leaves alone biases and all else that is no matrix.
    """

    def __init__(
        self,
        lr: float,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        l1: float = 0.0,
        matrices_only: bool = False,
    ) -> None:
        self.lr = checked_rate("lr", lr)
        self.momentum = checked_rate("momentum", momentum, below=1)
        self.nesterov = checked_flag("nesterov", nesterov)
        if nesterov and not momentum:
            raise InputError("needs momentum", where="optimizer.nesterov", found="momentum = 0", expected="above 0")
        self.weight_decay = checked_rate("weight_decay", weight_decay)
        self.l1 = checked_rate("l1", l1)
        self.matrices_only = checked_flag("matrices_only", matrices_only)
        self.slots = ("velocity",) if momentum else ()

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
        decays = chunks.decays_of(matrices_only=self.matrices_only)
        common = (chunks.bounds, decays, scale, lr, self.weight_decay, self.l1)
        terms = terms or no_terms(grads.dtype)
        if self.momentum:
            kernel.momentum(params, grads, slots[0], *common, self.momentum, self.nesterov, chunks.ones, terms)
        else:
            kernel.sgd(params, grads, *common, terms)
