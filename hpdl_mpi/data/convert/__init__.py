"""Converters: one module per format, one registry, one way to write."""

from hpdl_mpi.data.convert.options import Options
from hpdl_mpi.data.convert.pipeline import SKIPPED, convert

__all__ = ["SKIPPED", "Options", "convert"]
