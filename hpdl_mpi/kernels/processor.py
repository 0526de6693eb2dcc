"""The processor that kernels are compiled for. Imported before any kernel is."""

from __future__ import annotations

from llvmlite.binding import get_host_cpu_name
from numba.core import config
from numba.core.codegen import get_host_cpu_features

if config.CPU_FEATURES is None:
    config.CPU_FEATURES = get_host_cpu_features()
    if "+avx512f" in config.CPU_FEATURES.split(","):
        # LLVM makes loops of half vectors for processors that once slowed down for whole ones. Products take whole ones
        # anyway, and loops that compute take half as long with them.
        config.CPU_FEATURES += ",-prefer-256-bit"

if config.CPU_NAME is None and get_host_cpu_name().startswith("znver"):
    # LLVM's models of AMD's processors load operands so far ahead that a tile's sums leave their registers. Without a
    # model, products take three quarters of the time, and no kernel longer.
    config.CPU_NAME = "x86-64"

FEATURES = frozenset(config.CPU_FEATURES.split(","))
"""What it can and cannot do, in LLVM's words; ``NUMBA_CPU_FEATURES`` overrides it."""

VECTOR_BYTES = 64 if "+avx512f" in FEATURES else 32 if "+avx2" in FEATURES else 16
