"""Activations on flat arrays: forward writes y, backward writes dx from dy and what forward kept."""

from __future__ import annotations

import math

from numba import prange

from hpdl_mpi.kernels.jit import parallel_kernel


@parallel_kernel
def relu(x, slope, y):
    """y = x if x > 0 else slope x, keeping NaN; x, y (size,); slope 0 gives ReLU, otherwise LeakyReLU."""
    zero = x.dtype.type(0.0)
    leak = x.dtype.type(slope)
    for i in prange(x.size):
        value = x[i]
        # 0 times -inf would be NaN
        below = leak * value if leak > zero else zero
        y[i] = below if value <= zero else value


@parallel_kernel
def relu_backward(dy, y, slope, dx):
    """dx = dy where y > 0, else slope dy. The sign of y is that of x, since slope >= 0."""
    zero = y.dtype.type(0.0)
    one = y.dtype.type(1.0)
    leak = y.dtype.type(slope)
    for i in prange(y.size):
        dx[i] = dy[i] * (one if y[i] > zero else leak)


@parallel_kernel
def sigmoid(x, y):
    """y = 1 / (1 + exp(-x)), without overflow for large |x|."""
    one = x.dtype.type(1.0)
    for i in prange(x.size):
        e = math.exp(-abs(x[i]))
        y[i] = one / (one + e) if x[i] >= 0 else e / (one + e)


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
        y[i] = math.tanh(x[i])


@parallel_kernel
def tanh_backward(dy, y, dx):
    """dx = dy (1 - y^2)."""
    one = y.dtype.type(1.0)
    for i in prange(y.size):
        dx[i] = dy[i] * (one - y[i] * y[i])
