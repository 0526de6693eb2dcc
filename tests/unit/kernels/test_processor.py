"""The processor that kernels are compiled for."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import numba
import numpy as np

from hpdl_mpi.kernels.processor import FEATURES, VECTOR_BYTES

WHOLE = {64: "zmm", 32: "ymm", 16: "xmm"} if platform.machine() == "x86_64" else {16: ".4s"}
"""What a vector of so many bytes is called in the processor's code."""


def test_loops_take_whole_vectors() -> None:
    @numba.njit
    def double(x):
        for i in range(x.size):
            x[i] *= 2

    double(np.ones(3, np.float32))
    (code,) = double.inspect_asm().values()
    assert WHOLE[VECTOR_BYTES] in code


def test_features_that_are_asked_for_are_taken_as_they_are() -> None:
    wanted = ",".join(sorted(FEATURES - {"+avx512f", "-prefer-256-bit"}))
    script = "from hpdl_mpi.kernels.processor import *; print(','.join(sorted(FEATURES)), VECTOR_BYTES < 64)"
    environment = os.environ | {"NUMBA_CPU_FEATURES": wanted}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [wanted, "True"]
