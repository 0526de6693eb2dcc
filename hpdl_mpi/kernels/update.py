"""Optimizer updates: one fused pass over flat arrays, in place.

Every kernel takes ``chunks``, int64 (c, 2), the starts and stops of the runs of elements to update, and ``decays``,
float64 (c,), what multiplies the decay of each run. `scale` multiplies the gradients first (the rest of the mean over
the batch, and clipping). Gradients are zeroed in the same pass, ready for the next step's sums.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from hpdl_mpi.kernels.jit import inline, parallel_kernel


@inline
def _sign(p, real):
    return real(p > 0) - real(p < 0)


@parallel_kernel
def sum_squares(x, chunks, out):
    """out[c] = sum of x^2 over chunk c, in float64; `out` float64 (c,)."""
    for c in prange(len(chunks)):
        total = 0.0
        for i in range(chunks[c, 0], chunks[c, 1]):
            value = np.float64(x[i])
            total += value * value
        out[c] = total


@parallel_kernel
def sgd(params, grads, chunks, decays, scale, lr, weight_decay, l1):
    """Gradient descent: p -= lr (g + weight_decay p + l1 sign(p))."""
    real = params.dtype.type
    zero, scale, lr, l1 = real(0.0), real(scale), real(lr), real(l1)
    for c in prange(len(chunks)):
        decay = real(weight_decay * decays[c])
        lasso = l1 if decays[c] else zero
        for i in range(chunks[c, 0], chunks[c, 1]):
            p = params[i]
            g = grads[i] * scale + decay * p + lasso * _sign(p, real)
            params[i] = p - lr * g
            grads[i] = zero


@parallel_kernel
def momentum(params, grads, velocity, chunks, decays, scale, lr, weight_decay, l1, factor, nesterov):
    """Gradient descent with momentum: v = factor v + g, then p -= lr v, or lr (g + factor v) with `nesterov`.

    Polyak (1964); Nesterov's form as in Sutskever et al. (2013). g holds decay, as in `sgd`.
    """
    real = params.dtype.type
    zero, scale, lr, l1, factor = real(0.0), real(scale), real(lr), real(l1), real(factor)
    ahead = factor if nesterov else real(1.0)
    own = real(1.0) if nesterov else zero
    for c in prange(len(chunks)):
        decay = real(weight_decay * decays[c])
        lasso = l1 if decays[c] else zero
        for i in range(chunks[c, 0], chunks[c, 1]):
            p = params[i]
            g = grads[i] * scale + decay * p + lasso * _sign(p, real)
            v = factor * velocity[i] + g
            velocity[i] = v
            params[i] = p - lr * (own * g + ahead * v)
            grads[i] = zero


@parallel_kernel
def adam(params, grads, first, second, chunks, decays, scale, lr, weight_decay, decoupled, beta1, beta2, eps, time):
    """Adam (Kingma and Ba, 2015) at step `time` = 1, 2, ...; decoupled decay gives AdamW (Loshchilov, Hutter, 2019)."""
    real = params.dtype.type
    zero, one = real(0.0), real(1.0)
    root = real(1.0 / math.sqrt(1.0 - beta2**time))
    rate = real(lr / (1.0 - beta1**time))
    # from float64, since 1 - beta2 loses digits in float32
    rest1, rest2 = real(1.0 - beta1), real(1.0 - beta2)
    scale, lr, eps, b1, b2 = real(scale), real(lr), real(eps), real(beta1), real(beta2)
    for c in prange(len(chunks)):
        decay = real(weight_decay * decays[c])
        coupled = zero if decoupled else decay
        shrink = one - lr * decay if decoupled else one
        for i in range(chunks[c, 0], chunks[c, 1]):
            p = params[i]
            g = grads[i] * scale + coupled * p
            m = b1 * first[i] + rest1 * g
            v = b2 * second[i] + rest2 * g * g
            first[i] = m
            second[i] = v
            params[i] = p * shrink - rate * m / (math.sqrt(v) * root + eps)
            grads[i] = zero
