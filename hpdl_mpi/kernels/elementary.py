"""Elementary functions for the loops of other kernels, written so that LLVM makes vector instructions of them.

In single precision they are polynomials: the C library's functions take one number at a time, and ten times as long.
In double precision, which is for tests, they are the C library's. Their callers absorb them, but not their rounding:
a caller's fast-math may not reorder sums here, only contract them.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

_OPTIONS = {"fastmath": {"contract"}, "error_model": "numpy", "forceinline": True}

_single = np.float32
_ZERO, _HALF, _ONE = _single(0), _single(0.5), _single(1)

_LOWEST = _single(-87.0)
"""exp(-87) is the last power that is a normal number, near enough; below it exp is 0."""

_LOG2_E = _single(1 / math.log(2))
_LN2_HIGH = _single(0.693359375)
"""ln 2 in 9 bits: its multiples up to 127 are exact."""
_LN2_LOW = _single(math.log(2) - 0.693359375)
_ROUND = _single(1.5 * 2**23)
"""A number between -2^22 and 2^22 plus this one is rounded to an integer, which stands in the sum's last bits."""

_EXP = tuple(_single(1 / math.factorial(k)) for k in range(7, -1, -1))
"""Taylor's; what follows is below r^8 / 8! = 5.2e-9 for |r| <= ln 2 / 2, a tenth of a rounding."""

_THIRD = _single(1 / 3)
_TAIL = tuple(
    _single(value)
    for value in (
        -0.0277252402,
        0.154469147,
        -0.324840784,
        0.283786029,
        -0.101842232,
        0.143066928,
        0.10537073,
        0.134891212,
        0.132818177,
        6.01751071e-06,
    )
)
"""exp(a^2 / 2) Phi(-a) as a polynomial in 1 / (1 + a / 3): a minimax fit on 0 <= a <= 13.5, to 6.6e-9 of its value."""

_ROOT_HALF = math.sqrt(0.5)

_TWO = _single(2)
_TANH_NEAR = _single(0.625)
_TANH = tuple(
    _single(value)
    for value in (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
)
"""tanh(x) / x - 1 over x^2 as a polynomial in x^2 for |x| < 0.625 (Moshier, "Cephes", 1984)."""


@intrinsic
def _power_of_two(typing_context, rounded):
    """2^n for the float32 n + `_ROUND`, with n from -126 to 127."""

    def generate(context, builder, signature, arguments):
        integer = ir.IntType(32)
        bits = builder.bitcast(arguments[0], integer)
        exponent = builder.shl(bits, ir.Constant(integer, 23))
        return builder.bitcast(builder.add(exponent, ir.Constant(integer, 127 << 23)), ir.FloatType())

    return types.float32(types.float32), generate


def exp(x):
    """exp(x) for x <= 0, in single precision to 2 roundings (2^-24 of the value), and 0 below -87."""
    return math.exp(x)


def tanh(x):
    """tanh(x), in single precision to 4 roundings of its value."""
    return math.tanh(x)


def normal(x):
    """The standard normal distribution Phi(x), and exp(-x^2 / 2).

    In single precision both are good to 8 + x^2 roundings of their value, and what is left of them beyond |x| = 13.2
    is 0.
    """
    return 0.5 * math.erfc(-x * _ROOT_HALF), math.exp(-0.5 * x * x)


@overload(exp, jit_options=_OPTIONS)
def _exp(x):
    def double(x):
        return math.exp(x)

    def single(x):
        bounded = _LOWEST if x < _LOWEST else x
        rounded = bounded * _LOG2_E + _ROUND
        n = rounded - _ROUND
        r = (bounded - n * _LN2_HIGH) - n * _LN2_LOW
        value = _EXP[0]
        for k in range(1, len(_EXP)):
            value = value * r + _EXP[k]
        return _ZERO if x < _LOWEST else value * _power_of_two(rounded)

    return single if x == types.float32 else double


@overload(tanh, jit_options=_OPTIONS)
def _tanh(x):
    def double(x):
        return math.tanh(x)

    def single(x):
        size = abs(x)
        square = x * x
        value = _TANH[0]
        for k in range(1, len(_TANH)):
            value = value * square + _TANH[k]
        near = size + size * square * value
        # far from zero nothing is lost in the difference
        e = exp(-_TWO * size)
        far = (_ONE - e) / (_ONE + e)
        return math.copysign(near if size < _TANH_NEAR else far, x)

    return single if x == types.float32 else double


@overload(normal, jit_options=_OPTIONS)
def _normal(x):
    def double(x):
        return 0.5 * math.erfc(-x * _ROOT_HALF), math.exp(-0.5 * x * x)

    def single(x):
        size = abs(x)
        density = exp(-_HALF * size * size)
        t = _ONE / (_ONE + _THIRD * size)
        value = _TAIL[0]
        for k in range(1, len(_TAIL)):
            value = value * t + _TAIL[k]
        tail = density * value
        return tail if x < _ZERO else _ONE - tail, density

    return single if x == types.float32 else double
