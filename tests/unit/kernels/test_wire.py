"""Floats in 16 bits: rounded to the nearest, on both ends alike."""

from __future__ import annotations

from unittest.mock import Mock

import numpy as np
import pytest

from hpdl_mpi.comm import compile_reduction
from hpdl_mpi.kernels.jit import ParallelKernel
from hpdl_mpi.kernels.wire import WIRES, Wire

SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-45, 3e38, -3e38, 65504, 65519.9, 1e5], np.float32)


def values() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.concatenate([SPECIAL, (rng.normal(size=1000) * 10.0 ** rng.integers(-8, 5, 1000)).astype(np.float32)])


def nearest_bf16(x: np.ndarray) -> np.ndarray:
    """Round by hand: of the two neighbours the nearer one, of equals the even one."""
    below = (x.view(np.uint32) & 0xFFFF0000).view(np.float32)
    above = ((x.view(np.uint32) & 0xFFFF0000) + 0x10000).view(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        down, up = np.abs(x.astype(np.float64) - below), np.abs(above.astype(np.float64) - x)
        even = (x.view(np.uint32) >> 16) % 2 == 0
        return np.where((down < up) | ((down == up) & even), below, above)


def test_bfloat16_is_the_nearest() -> None:
    x = values()
    x = x[np.isfinite(x)]
    packed, wire = x.copy(), np.zeros(x.size, np.uint16)
    WIRES["bf16"].pack(packed, wire)
    np.testing.assert_array_equal(packed, nearest_bf16(x))


@pytest.mark.skipif("fp16" not in WIRES, reason="the processor does not convert half precision")
def test_half_is_numpys_but_for_what_is_too_large() -> None:
    x = values()
    packed, wire = x.copy(), np.zeros(x.size, np.uint16)
    WIRES["fp16"].pack(packed, wire)
    finite = np.where(np.isinf(x), x, np.clip(x, -65504, 65504))
    np.testing.assert_array_equal(packed, finite.astype(np.float16).astype(np.float32))


def test_both_forms_of_all_that_a_wire_does_are_compiled_before_it_is_used() -> None:
    kernels = {name: Mock(spec=ParallelKernel, serial=Mock()) for name in ("round", "pack", "unpack", "add")}
    compile_reduction(np.float32, Wire(name="fake", **kernels))
    for kernel in kernels.values():
        kernel.assert_called_once()
        kernel.serial.assert_called_once()


@pytest.mark.parametrize("name", WIRES)
def test_both_ends_hold_the_same(name: str) -> None:
    kind, x = WIRES[name], values()
    wire, there = np.zeros(x.size, np.uint16), np.zeros_like(x)
    kind.pack(x, wire)
    kind.unpack(there, wire)
    np.testing.assert_array_equal(there.view(np.uint32), x.view(np.uint32))
    again = x.copy()
    kind.pack(again, wire)
    np.testing.assert_array_equal(again.view(np.uint32), x.view(np.uint32), "rounded once is rounded")
    total = np.ones_like(x)
    kind.add(total, wire)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(total, 1 + x)


@pytest.mark.parametrize("name", WIRES)
def test_what_is_no_number_stays_so(name: str) -> None:
    x, wire = np.array([np.nan], np.float32), np.zeros(1, np.uint16)
    WIRES[name].pack(x, wire)
    assert np.isnan(x[0])
