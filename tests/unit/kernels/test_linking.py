"""The bits of a kernel do not depend on who compiled it, or what else this process has loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONVOLVE = """
import hashlib, sys
import numpy as np
from hpdl_mpi.kernels import winograd
from hpdl_mpi.kernels.threads import set_threads

set_threads(int(sys.argv[1]))
random = np.random.default_rng(0)
x, weight = (random.standard_normal(shape).astype(np.float32) for shape in ((8, 14, 14, 32), (64, 3, 3, 32)))
y = np.empty((8, 14, 14, 64), np.float32)
scheme = winograd.best_scheme((3, 3), (1, 1), (1, 1), (14, 14))
scratch = np.empty(winograd.scratch_size(scheme, 32, y.shape, y.dtype) + 16, np.float32)
start = -scratch.ctypes.data % 64 // 4
winograd.forward(scheme, x, weight, np.zeros(64, np.float32), (1, 1), scratch[start : scratch.size - 16 + start], y)
print(hashlib.sha256(y.tobytes()).hexdigest())
"""

CALL = """
import numba
import numpy as np
from hpdl_mpi.kernels.normalization import channel_moments

@numba.njit
def call(x, out):
    channel_moments(x, out)

x = np.arange(12, dtype=np.float32).reshape(4, 3)
direct, linked = np.empty((2, 3, 3), np.float32)
channel_moments(x, direct)
print(sum(channel_moments.stats.cache_hits.values()))
call(x, linked)
np.testing.assert_array_equal(linked[0], x.mean(axis=0))
np.testing.assert_array_equal(linked, direct)
"""


def test_kernel_from_the_cache_can_be_called_by_one_that_is_compiled_now(tmp_path: Path) -> None:
    environment = os.environ | {"HPDL_CACHE_DIR": str(tmp_path)}
    hits = [
        subprocess.run([sys.executable, "-c", CALL], env=environment, check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    ]
    assert hits == ["0\n", "1\n"]


@pytest.mark.parametrize("threads", [1, 2])
def test_bits_are_the_same_whether_kernels_were_compiled_or_loaded(tmp_path: Path, threads: int) -> None:
    environment = os.environ | {"HPDL_CACHE_DIR": str(tmp_path), "NUMBA_NUM_THREADS": "2"}

    def convolve() -> str:
        command = [sys.executable, "-c", CONVOLVE, str(threads)]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    compiled = convolve()
    assert any(tmp_path.rglob("*.nbc")), "the kernels are in the cache"
    loaded = convolve()
    assert loaded == compiled
