"""Samples: sharded HDF5, their order, the batches of one rank. Knows (rank, size) as integers, never MPI."""

from hpdl_mpi.data.augment import Augment, Jitter
from hpdl_mpi.data.batch import Batch
from hpdl_mpi.data.dataset import Dataset
from hpdl_mpi.data.loader import Loader
from hpdl_mpi.data.masking import Masking
from hpdl_mpi.data.pairs import Pairs
from hpdl_mpi.data.sampler import epoch_order
from hpdl_mpi.data.samples import Samples
from hpdl_mpi.data.statistics import fitted, value_range
from hpdl_mpi.data.transform import Transform
from hpdl_mpi.data.windows import Windows

__all__ = [
    "Augment",
    "Batch",
    "Dataset",
    "Jitter",
    "Loader",
    "Masking",
    "Pairs",
    "Samples",
    "Transform",
    "Windows",
    "epoch_order",
    "fitted",
    "value_range",
]
