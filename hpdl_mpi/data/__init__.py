"""Samples: sharded HDF5, their order, the batches of one rank. Knows (rank, size) as integers, never MPI."""

from hpdl_mpi.data.dataset import Dataset
from hpdl_mpi.data.loader import Batch, Loader
from hpdl_mpi.data.sampler import epoch_order
from hpdl_mpi.data.statistics import fitted, value_range
from hpdl_mpi.data.transform import Transform

__all__ = ["Batch", "Dataset", "Loader", "Transform", "epoch_order", "fitted", "value_range"]
