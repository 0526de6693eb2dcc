"""Optimizer updates: one fused pass over flat arrays, in place.

Every kernel takes ``chunks``, int64 (c, 2), the starts and stops of the runs of elements to update, and ``decays``,
float64 (c,), what multiplies the decay of each run. `scale` multiplies the gradients first (the rest of the mean over
the batch, and clipping). Gradients are zeroed in the same pass, ready for the next step's sums. Inner loops run over
slices from 0: an index that could be negative would keep them from becoming vector loops. All round as written, so
that replicas get the same bits from one thread as from several.

Where ranks share memory, ``terms`` says where the gradients of all of them lie, see `Terms`: the others' are added to a
run before its update, while it is in the cache, and zeroed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import prange

from hpdl_mpi.kernels.jit import exact_parallel_kernel, inline


class Terms(NamedTuple):
    """Where gradients lie that are to be added to a rank's own.

    Attributes
    ----------
    rows : array, shape (ranks, n)
        Of all ranks, this one among them; with no rows there is nothing to add.
    own : int
        This rank's row. The next ones are added first, then those before it.
    first : int
        Where in a row the updated elements begin.
    """

    rows: np.ndarray
    own: int
    first: int


@inline
def _collect(g, start, terms):
    """Add what the other rows have for a run of gradients that begins at `start`, and zero it there."""
    rows, own, first = terms
    zero = g.dtype.type(0.0)
    for k in range(1, len(rows)):
        row = rows[(own + k) % len(rows)]
        other = row[first + start : first + start + g.size]
        for i in range(g.size):
            g[i] += other[i]
            other[i] = zero


@inline
def _square(value):
    return np.float64(value) * np.float64(value)


@inline
def _sign(p, real):
    return real(p > 0) - real(p < 0)


@exact_parallel_kernel
def sum_squares(x, chunks, out):
    """out[c] = sum of x^2 over chunk c, in float64; `out` float64 (c,)."""
    for c in prange(len(chunks)):
        run = x[chunks[c, 0] : chunks[c, 1]]
        n = run.size // 4
        first, second, third, fourth = run[:n], run[n : 2 * n], run[2 * n : 3 * n], run[3 * n : 4 * n]
        rest = run[4 * n :]
        # four sums side by side: in one alone each addition would wait for the one before
        a = b = d = e = 0.0
        for i in range(n):
            a += _square(first[i])
            b += _square(second[i])
            d += _square(third[i])
            e += _square(fourth[i])
        for i in range(rest.size):
            a += _square(rest[i])
        out[c] = (a + b) + (d + e)


@exact_parallel_kernel
def average(averages, values, chunks, rest):
    """Exponential moving average: a += rest (v - a), `rest` being 1 - decay."""
    rest = averages.dtype.type(rest)
    for c in prange(len(chunks)):
        run = slice(chunks[c, 0], chunks[c, 1])
        a, v = averages[run], values[run]
        for i in range(a.size):
            a[i] += rest * (v[i] - a[i])


@exact_parallel_kernel
def sgd(params, grads, chunks, decays, scale, lr, weight_decay, l1, terms):
    """Gradient descent: p -= lr (g + weight_decay p + l1 sign(p))."""
    real = params.dtype.type
    zero, scale, lr, l1 = real(0.0), real(scale), real(lr), real(l1)
    for c in prange(len(chunks)):
        decay = real(weight_decay * decays[c])
        lasso = l1 if decays[c] else zero
        run = slice(chunks[c, 0], chunks[c, 1])
        p, g = params[run], grads[run]
        _collect(g, chunks[c, 0], terms)
        for i in range(p.size):
            p[i] -= lr * (g[i] * scale + decay * p[i] + lasso * _sign(p[i], real))
            g[i] = zero


@exact_parallel_kernel
def momentum(params, grads, velocity, chunks, decays, scale, lr, weight_decay, l1, factor, nesterov, rates, terms):
    """Gradient descent with momentum: v = factor v + g, then p -= lr v, or lr (g + factor v) with `nesterov`.

    Polyak (1964); Nesterov's form as in Sutskever et al. (2013). g holds decay, as in `sgd`, and counts `rates` times,
    float64 (c,).
    """
    real = params.dtype.type
    zero, scale, lr, l1, factor = real(0.0), real(scale), real(lr), real(l1), real(factor)
    ahead = factor if nesterov else real(1.0)
    own = real(1.0) if nesterov else zero
    for c in prange(len(chunks)):
        decay = real(weight_decay * decays[c])
        lasso = l1 if decays[c] else zero
        run = slice(chunks[c, 0], chunks[c, 1])
        p, g, v = params[run], grads[run], velocity[run]
        rate = real(rates[c])
        _collect(g, chunks[c, 0], terms)
        for i in range(p.size):
            slope = rate * (g[i] * scale + decay * p[i] + lasso * _sign(p[i], real))
            v[i] = factor * v[i] + slope
            p[i] -= lr * (own * slope + ahead * v[i])
            g[i] = zero


@exact_parallel_kernel
def adam(
    params, grads, means, squares, chunks, decays, scale, lr, weight_decay, decoupled, beta1, beta2, eps, time, terms
):
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
        run = slice(chunks[c, 0], chunks[c, 1])
        p, g, m, v = params[run], grads[run], means[run], squares[run]
        _collect(g, chunks[c, 0], terms)
        for i in range(p.size):
            slope = g[i] * scale + coupled * p[i]
            m[i] = b1 * m[i] + rest1 * slope
            v[i] = b2 * v[i] + rest2 * slope * slope
            p[i] = p[i] * shrink - rate * m[i] / (math.sqrt(v[i]) * root + eps)
            g[i] = zero


@exact_parallel_kernel
def adam_direction(params, grads, first, second, chunks, decays, scale, weight_decay, beta1, beta2, eps, time):
    """g = the direction of `adam` with decoupled decay: what `lr` would multiply."""
    real = params.dtype.type
    root = real(1.0 / math.sqrt(1.0 - beta2**time))
    rate = real(1.0 / (1.0 - beta1**time))
    rest1, rest2 = real(1.0 - beta1), real(1.0 - beta2)
    scale, eps, b1, b2 = real(scale), real(eps), real(beta1), real(beta2)
    for c in prange(len(chunks)):
        decay = real(weight_decay * decays[c])
        run = slice(chunks[c, 0], chunks[c, 1])
        p, g, m, v = params[run], grads[run], first[run], second[run]
        for i in range(p.size):
            slope = g[i] * scale
            m[i] = b1 * m[i] + rest1 * slope
            v[i] = b2 * v[i] + rest2 * slope * slope
            g[i] = rate * m[i] / (math.sqrt(v[i]) * root + eps) + decay * p[i]


@exact_parallel_kernel
def follow(params, grads, chunks, rates, lr):
    """p -= lr rates g, `rates` float64 (c,)."""
    real = params.dtype.type
    zero = real(0.0)
    for c in prange(len(chunks)):
        rate = real(lr * rates[c])
        run = slice(chunks[c, 0], chunks[c, 1])
        p, g = params[run], grads[run]
        for i in range(p.size):
            p[i] -= rate * g[i]
            g[i] = zero
