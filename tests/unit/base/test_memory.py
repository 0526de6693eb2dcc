"""Arrays that the package keeps are aligned and zero."""

from __future__ import annotations

import numpy as np
import pytest

from hpdl_mpi.base.memory import ALIGNMENT, aligned, heap


@pytest.mark.parametrize("nbytes", [1, 63, 64, 65, 4096])
def test_heap_gives_zeroed_aligned_bytes(nbytes: int) -> None:
    array = heap(nbytes)
    assert array.shape == (nbytes,)
    assert array.dtype == np.uint8
    assert array.ctypes.data % ALIGNMENT == 0
    assert not array.any()


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64, np.int64])
@pytest.mark.parametrize("shape", [7, (3, 5), (0, 4), ()])
def test_array_has_the_shape_and_dtype_asked_for(shape: int | tuple[int, ...], dtype: type) -> None:
    array = aligned(shape, dtype)
    assert array.shape == ((shape,) if isinstance(shape, int) else shape)
    assert array.dtype == dtype
    assert array.flags.c_contiguous
    assert not array.size or array.ctypes.data % ALIGNMENT == 0
    assert not array.any()


def test_memory_may_come_from_elsewhere() -> None:
    arena = heap(256)
    array = aligned((2, 3), np.float32, lambda nbytes: arena[:nbytes])
    array[...] = 1
    assert np.shares_memory(array, arena)
    assert arena[:24].any()
    assert not arena[24:].any()
