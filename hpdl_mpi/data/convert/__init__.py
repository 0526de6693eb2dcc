"""Converters: one module per format, one registry, one way to write."""

from hpdl_mpi.data.convert.pipeline import SKIPPED, Options, convert

__all__ = ["SKIPPED", "Options", "convert"]
