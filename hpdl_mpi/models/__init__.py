"""Reference models: functions that return a Layer. The registry gives a job its model by name."""

from hpdl_mpi.models.lenet import lenet
from hpdl_mpi.models.mlp import mlp

MODELS = {"lenet": lenet, "mlp": mlp}

__all__ = ["MODELS", "lenet", "mlp"]
