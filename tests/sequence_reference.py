"""Naive twins of layers for sequences, from their definitions; see `tests.reference`."""

from __future__ import annotations

import math

import numpy as np

from tests.reference import Array, silu, softmax


def attention(q: Array, k: Array, v: Array, *, causal: bool = False, mask: Array | None = None) -> Array:
    """Return what each query sees: q (n, queries, heads, dim); k, v (n, keys, groups, dim); mask (n, keys).

    A query that sees no key gets zeros. Head h has the keys of group h groups // heads.
    """
    (n, queries, heads, dim), (_, keys, groups, _) = q.shape, k.shape
    out = np.zeros(q.shape)
    for i in range(n):
        for h in range(heads):
            group = h * groups // heads
            for t in range(queries):
                seen = [s for s in range(keys) if (not causal or s <= t) and (mask is None or mask[i, s] > 0)]
                if seen:
                    weights = softmax(k[i, seen, group] @ q[i, t, h] / math.sqrt(dim))
                    out[i, t, h] = weights @ v[i, seen, group]
    return out


def self_attention(
    qkv: Array, heads: int, groups: int | None = None, *, causal: bool = False, mask: Array | None = None
) -> Array:
    """Return attention of (n, steps, (heads + 2 groups) dim): queries, keys and values of all heads side by side."""
    groups = groups or heads
    n, steps, width = qkv.shape
    parts = qkv.reshape(n, steps, heads + 2 * groups, width // (heads + 2 * groups))
    q, k, v = parts[:, :, :heads], parts[:, :, heads : heads + groups], parts[:, :, heads + groups :]
    return attention(q, k, v, causal=causal, mask=mask).reshape(n, steps, -1)


def cross_attention(q: Array, kv: Array, heads: int, groups: int | None = None, *, mask: Array | None = None) -> Array:
    """Return attention of q (n, steps, heads dim) to keys and values, (n, memory, 2 groups dim)."""
    groups = groups or heads
    n, steps, width = q.shape
    parts = kv.reshape(n, kv.shape[1], 2, groups, width // heads)
    out = attention(q.reshape(n, steps, heads, -1), parts[:, :, 0], parts[:, :, 1], mask=mask)
    return out.reshape(n, steps, width)


def rotated(qkv: Array, heads: int, groups: int, base: float = 10000.0) -> Array:
    """Return queries and keys with each pair (c, c + dim / 2), as a complex number, turned by its angle."""
    n, steps, width = qkv.shape
    parts = heads + 2 * groups
    dim = width // parts
    result = qkv.reshape(n, steps, parts, dim).copy()
    for t in range(steps):
        for c in range(dim // 2):
            turn = np.exp(1j * t * base ** (-2 * c / dim))
            pairs = (result[:, t, : heads + groups, c] + 1j * result[:, t, : heads + groups, c + dim // 2]) * turn
            result[:, t, : heads + groups, c] = pairs.real
            result[:, t, : heads + groups, c + dim // 2] = pairs.imag
    return result.reshape(qkv.shape)


def sinusoids(steps: int, dim: int) -> Array:
    """Return the table of section 3.5 of "Attention is all you need"."""
    table = np.zeros((steps, dim))
    for t in range(steps):
        for c in range(0, dim, 2):
            angle = t / 10000 ** (c / dim)
            table[t, c] = math.sin(angle)
            if c + 1 < dim:
                table[t, c + 1] = math.cos(angle)
    return table


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Return each row divided by its root mean square, then scaled."""
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def swiglu(x: Array) -> Array:
    """Return silu of the first half of the last dim times the second half."""
    half = x.shape[-1] // 2
    return silu(x[..., :half]) * x[..., half:]
