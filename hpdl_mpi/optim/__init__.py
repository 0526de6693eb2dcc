"""Optimizers and learning-rate schedules. Optimizers work in place, on flat slices."""

from hpdl_mpi.optim.adam import Adam, AdamW
from hpdl_mpi.optim.lamb import LAMB
from hpdl_mpi.optim.lars import LARS
from hpdl_mpi.optim.optimizer import Chunks, Optimizer, clip_factor
from hpdl_mpi.optim.schedules import Constant, Cosine, InverseSquareRoot, Schedule, Step
from hpdl_mpi.optim.sgd import SGD

OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW, "lars": LARS, "lamb": LAMB}
SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "step": Step,
    "cosine": Cosine,
    "inverse_sqrt": InverseSquareRoot,
}

__all__ = [
    "LAMB",
    "LARS",
    "OPTIMIZERS",
    "SCHEDULES",
    "SGD",
    "Adam",
    "AdamW",
    "Chunks",
    "Constant",
    "Cosine",
    "InverseSquareRoot",
    "Optimizer",
    "Schedule",
    "Step",
    "clip_factor",
]
