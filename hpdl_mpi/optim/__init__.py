"""Optimizers and learning-rate schedules. Optimizers work in place, on flat slices."""

from hpdl_mpi.optim.adam import Adam, AdamW
from hpdl_mpi.optim.optimizer import Chunks, Optimizer, clip_factor
from hpdl_mpi.optim.schedules import Constant, Cosine, Schedule, Step
from hpdl_mpi.optim.sgd import SGD

OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}
SCHEDULES: dict[str, type[Schedule]] = {"constant": Constant, "step": Step, "cosine": Cosine}

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "SGD",
    "Adam",
    "AdamW",
    "Chunks",
    "Constant",
    "Cosine",
    "Optimizer",
    "Schedule",
    "Step",
    "clip_factor",
]
