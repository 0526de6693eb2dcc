"""The processor that kernels are compiled for."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys

import numba
import numpy as np
import pytest

from hpdl_mpi.base.memory import aligned
from hpdl_mpi.kernels.processor import FEATURES, VECTOR_BYTES
from hpdl_mpi.kernels.vector import ROWS, VECTORS, multiply_panel

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


@pytest.mark.skipif(platform.machine() != "x86_64", reason="it reads the code of x86")
def test_the_sums_of_a_tile_stay_in_registers() -> None:
    multiply = multiply_panel(VECTORS)

    @numba.njit
    def product(a, panel, c):
        row, size = np.int64(c.size), (np.int64(1), np.int64(c.size))
        onto, bias = (c, (np.int64(0), row, False)), (c, (np.int64(0), False))
        a_place = np.int64(0), np.int64(a.size), np.int64(1), np.int64(a.size)
        multiply(a.size, a, a_place, panel, c, (np.int64(0), row), size, onto + bias)

    width = VECTORS * VECTOR_BYTES // 4
    product(aligned(8, np.float32), aligned(8 * width, np.float32), aligned(width, np.float32))
    (code,) = product.inspect_asm().values()
    loop = max(code.split("\n.L"), key=lambda block: block.count("vfmadd"))
    assert loop.count("vfmadd") == 4 * ROWS * VECTORS
    whole = WHOLE[VECTOR_BYTES]
    assert not re.findall(rf"vmov\w+\s+%{whole}\d+, (?:%{whole}|.*%rsp)", loop)
