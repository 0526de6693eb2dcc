"""The border: weights in and out, under the names and in the layouts of PyTorch's ``state_dict``."""

from hpdl_mpi.weights.file import TensorFile, encode
from hpdl_mpi.weights.fill import check, fill
from hpdl_mpi.weights.tensors import Tensor, counters, tensors

__all__ = ["Tensor", "TensorFile", "check", "counters", "encode", "fill", "tensors"]
