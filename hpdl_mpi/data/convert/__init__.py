"""Converters: one module per format, one registry, one way to write."""

from hpdl_mpi.data.convert.pipeline import FORMATS, Options, convert

__all__ = ["FORMATS", "Options", "convert"]
