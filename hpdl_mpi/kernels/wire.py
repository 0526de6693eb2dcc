"""Floats in half the bytes, for messages: rounded to bfloat16 or IEEE's half precision, as 16-bit patterns.

Arrays are flat: values float32, patterns uint16. What is packed is rounded in place, too: both ends of a message hold
the same numbers then.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from hpdl_mpi.kernels.jit import ParallelKernel, inline, parallel_kernel
from hpdl_mpi.kernels.processor import FEATURES

_LARGEST_HALF = 65504.0
_FLOAT, _HALF, _WORD, _PATTERN = ir.FloatType(), ir.HalfType(), ir.IntType(32), ir.IntType(16)


@intrinsic
def _bits(typing_context, value):
    """Return the pattern of a float32."""
    return types.uint32(types.float32), lambda context, builder, signature, args: builder.bitcast(args[0], _WORD)


@intrinsic
def _float(typing_context, bits):
    """Return the float32 of a pattern."""
    return types.float32(types.uint32), lambda context, builder, signature, args: builder.bitcast(args[0], _FLOAT)


@intrinsic
def _half_bits(typing_context, value):
    """Return the pattern of a float32 rounded to half precision."""

    def generate(context, builder, signature, args):
        return builder.bitcast(builder.fptrunc(args[0], _HALF), _PATTERN)

    return types.uint16(types.float32), generate


@intrinsic
def _half(typing_context, bits):
    """Return the float32 of a pattern of half precision."""

    def generate(context, builder, signature, args):
        return builder.fpext(builder.bitcast(args[0], _HALF), _FLOAT)

    return types.float32(types.uint16), generate


@inline
def _to_bf16(value):
    """Round to nearest, ties to even; a NaN stays one."""
    bits = _bits(value)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return np.uint16((bits | np.uint32(0x400000) if value != value else rounded) >> np.uint32(16))


@inline
def _from_bf16(pattern):
    return _float(np.uint32(pattern) << np.uint32(16))


@parallel_kernel
def pack_bf16(values, wire):
    """wire = values, rounded; values too."""
    for i in prange(values.size):
        pattern = _to_bf16(values[i])
        wire[i] = pattern
        values[i] = _from_bf16(pattern)


@parallel_kernel
def round_bf16(values):
    """Round in place."""
    for i in prange(values.size):
        values[i] = _from_bf16(_to_bf16(values[i]))


@parallel_kernel
def unpack_bf16(values, wire):
    """values = wire."""
    for i in prange(values.size):
        values[i] = _from_bf16(wire[i])


@parallel_kernel
def add_bf16(values, wire):
    """values += wire."""
    for i in prange(values.size):
        values[i] += _from_bf16(wire[i])


@inline
def _to_half(value):
    """Round to nearest; what is too large becomes the largest, but what is infinite stays that."""
    most, infinite = np.float32(_LARGEST_HALF), np.float32(np.inf)
    value = most if most < value < infinite else value
    return _half_bits(-most if -infinite < value < -most else value)


@parallel_kernel
def pack_fp16(values, wire):
    """wire = values, rounded; values too."""
    for i in prange(values.size):
        pattern = _to_half(values[i])
        wire[i] = pattern
        values[i] = _half(pattern)


@parallel_kernel
def round_fp16(values):
    """Round in place."""
    for i in prange(values.size):
        values[i] = _half(_to_half(values[i]))


@parallel_kernel
def unpack_fp16(values, wire):
    """values = wire."""
    for i in prange(values.size):
        values[i] = _half(wire[i])


@parallel_kernel
def add_fp16(values, wire):
    """values += wire."""
    for i in prange(values.size):
        values[i] += _half(wire[i])


class Wire(NamedTuple):
    """How values travel: each function takes values and patterns, `round` values alone."""

    name: str
    round: ParallelKernel
    pack: ParallelKernel
    unpack: ParallelKernel
    add: ParallelKernel


WIRES = {"bf16": Wire("bf16", round_bf16, pack_bf16, unpack_bf16, add_bf16)}
if FEATURES & {"+f16c", "+avx512f", "+neon"}:
    WIRES["fp16"] = Wire("fp16", round_fp16, pack_fp16, unpack_fp16, add_fp16)
"""By name; half precision where the processor converts it."""
