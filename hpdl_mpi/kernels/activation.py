"""Activations on flat arrays: forward writes y, backward writes dx from dy and what forward kept."""

from __future__ import annotations

import math

from numba import prange

from hpdl_mpi.kernels import elementary
from hpdl_mpi.kernels.elementary import exp, normal
from hpdl_mpi.kernels.elementwise import clipped, held_back, lies_at
from hpdl_mpi.kernels.jit import inline, parallel_kernel

_NORMAL_HEIGHT = 1 / math.sqrt(2 * math.pi)
"""Of the standard normal density at 0."""

_GELU_LINEAR = 2 * math.sqrt(2 / math.pi)
_GELU_CUBIC = 0.044715 * _GELU_LINEAR
"""(1 + tanh(u)) / 2 is the logistic function of 2 u."""


@parallel_kernel
def leaky_relu(x, slope, y):
    """y = x if x > 0 else slope x, keeping NaN; x, y (size,)."""
    zero = x.dtype.type(0.0)
    leak = x.dtype.type(slope)
    for i in prange(x.size):
        value = x[i]
        # 0 times -inf would be NaN
        below = leak * value if leak > zero else zero
        y[i] = below if value <= zero else value


@parallel_kernel
def leaky_relu_backward(dy, y, slope, dx):
    """dx = dy where y > 0, else slope dy. The sign of y is that of x, since slope >= 0."""
    zero = y.dtype.type(0.0)
    one = y.dtype.type(1.0)
    leak = y.dtype.type(slope)
    for i in prange(y.size):
        dx[i] = dy[i] * (one if y[i] > zero else leak)


@parallel_kernel
def clip(x, low, high, y):
    """y = x where low <= x <= high, else the nearer of them, keeping NaN; (size,), y may be x."""
    least, most = x.dtype.type(low), x.dtype.type(high)
    if lies_at(x, y):
        for i in prange(y.size):
            y[i] = clipped(y[i], least, most)
    else:
        for i in prange(y.size):
            y[i] = clipped(x[i], least, most)


@parallel_kernel
def clip_backward(dy, y, low, high, dx):
    """dx = 0 where y is at a limit, else dy; dx may be dy."""
    least, most, zero = y.dtype.type(low), y.dtype.type(high), y.dtype.type(0.0)
    if lies_at(dy, dx):
        for i in prange(y.size):
            dx[i] = zero if held_back(y[i], least, most) else dx[i]
    else:
        for i in prange(y.size):
            dx[i] = zero if held_back(y[i], least, most) else dy[i]


@inline
def logistic(x, one):
    """Return s = 1 / (1 + exp(-x)) and its slope s (1 - s), without overflow for large |x|."""
    e = exp(-abs(x))
    share = one / (one + e)
    return share if x >= 0 else e * share, e * share * share


@parallel_kernel
def sigmoid(x, y):
    """y = 1 / (1 + exp(-x))."""
    one = x.dtype.type(1.0)
    for i in prange(x.size):
        y[i], _ = logistic(x[i], one)


@parallel_kernel
def sigmoid_backward(dy, y, dx):
    """dx = dy y (1 - y)."""
    one = y.dtype.type(1.0)
    for i in prange(y.size):
        dx[i] = dy[i] * y[i] * (one - y[i])


@parallel_kernel
def tanh(x, y):
    """y = tanh(x)."""
    for i in prange(x.size):
        y[i] = elementary.tanh(x[i])


@parallel_kernel
def tanh_backward(dy, y, dx):
    """dx = dy (1 - y^2)."""
    one = y.dtype.type(1.0)
    for i in prange(y.size):
        dx[i] = dy[i] * (one - y[i] * y[i])


# x times a gate, which opens from 0 to 1 as x rises. Where it is shut y is 0: no number times 0, for x may be -inf.


@inline
def _pass(x, gate):
    return gate if gate == 0 else x * gate


@inline
def _slope(x, gate, slope):
    return gate if slope == 0 else gate + x * slope


@parallel_kernel
def silu(x, y):
    """y = x / (1 + exp(-x))."""
    one = x.dtype.type(1.0)
    for i in prange(x.size):
        gate, _ = logistic(x[i], one)
        y[i] = _pass(x[i], gate)


@parallel_kernel
def silu_backward(dy, x, dx):
    """dx = dy times the slope of `silu` at x."""
    one = x.dtype.type(1.0)
    for i in prange(x.size):
        gate, slope = logistic(x[i], one)
        dx[i] = dy[i] * _slope(x[i], gate, slope)


@inline
def _gelu(x, height):
    """Return x Phi(x), with the standard normal distribution Phi, whose density at 0 is `height`; and the slope."""
    gate, density = normal(x)
    return _pass(x, gate), _slope(x, gate, height * density)


@inline
def _gelu_tanh(x, one, linear, cubic, threefold):
    """Return x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, which is nearly `_gelu`, and its slope."""
    square = x * x
    gate, slope = logistic(x * (linear + cubic * square), one)
    return _pass(x, gate), _slope(x, gate, slope if slope == 0 else slope * (linear + threefold * square))


@parallel_kernel
def gelu(x, y, slope):
    """y = x Phi(x), and its slope unless `slope` is empty; all flat, `slope` may be x."""
    height = x.dtype.type(_NORMAL_HEIGHT)
    if slope.size == 0:
        for i in prange(x.size):
            y[i], _ = _gelu(x[i], height)
    elif lies_at(x, slope):
        for i in prange(x.size):
            y[i], slope[i] = _gelu(slope[i], height)
    else:
        for i in prange(x.size):
            y[i], slope[i] = _gelu(x[i], height)


@parallel_kernel
def gelu_tanh(x, y, slope):
    """y = x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2; for the rest, see `gelu`."""
    one, linear, cubic = x.dtype.type(1.0), x.dtype.type(_GELU_LINEAR), x.dtype.type(_GELU_CUBIC)
    threefold = x.dtype.type(3.0) * cubic
    if slope.size == 0:
        for i in prange(x.size):
            y[i], _ = _gelu_tanh(x[i], one, linear, cubic, threefold)
    elif lies_at(x, slope):
        for i in prange(x.size):
            y[i], slope[i] = _gelu_tanh(slope[i], one, linear, cubic, threefold)
    else:
        for i in prange(x.size):
            y[i], slope[i] = _gelu_tanh(x[i], one, linear, cubic, threefold)


@parallel_kernel
def silu_gate(x, y):
    """y = silu(a) b, where a is the first half of each row of x and b the second; x (rows, 2 c), y (rows, c)."""
    one, width = x.dtype.type(1.0), y.shape[1]
    for p in prange(x.shape[0]):
        a, b, target = x[p, :width], x[p, width:], y[p]
        for c in range(width):
            gate, _ = logistic(a[c], one)
            target[c] = _pass(a[c], gate) * b[c]


@parallel_kernel
def silu_gate_backward(dy, x, dx):
    """dx = dy times the slopes of `silu_gate` at x."""
    one, width = x.dtype.type(1.0), dy.shape[1]
    for p in prange(x.shape[0]):
        a, b, gradient, da, db = x[p, :width], x[p, width:], dy[p], dx[p, :width], dx[p, width:]
        for c in range(width):
            gate, slope = logistic(a[c], one)
            da[c] = gradient[c] * b[c] * _slope(a[c], gate, slope)
            db[c] = gradient[c] * _pass(a[c], gate)
