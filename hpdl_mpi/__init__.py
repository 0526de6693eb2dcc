"""Train deep networks on CPU clusters with MPI.

Importing the package starts no MPI and compiles nothing: every name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hpdl_mpi.base.start import watch_start

if TYPE_CHECKING:
    from hpdl_mpi import models, nn, optim
    from hpdl_mpi.data import Augment, Jitter, Masking, Transform
    from hpdl_mpi.train import Checkpoint, EarlyStopping, Parallel, Trainer

__version__ = "0.1.0"
__all__ = [
    "Augment",
    "Checkpoint",
    "EarlyStopping",
    "Jitter",
    "Masking",
    "Parallel",
    "Trainer",
    "Transform",
    "__version__",
    "models",
    "nn",
    "optim",
]

_MODULES = {"models", "nn", "optim"}
_NAMES = dict.fromkeys(("Checkpoint", "EarlyStopping", "Parallel", "Trainer"), "hpdl_mpi.train")
_NAMES |= dict.fromkeys(("Augment", "Jitter", "Masking", "Transform"), "hpdl_mpi.data")


# Not `hpdl_mpi.comm`: it is loaded only if this process ends before it has started MPI.
watch_start(lambda: importlib.import_module("hpdl_mpi.comm.world"))


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"hpdl_mpi.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'hpdl_mpi' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
