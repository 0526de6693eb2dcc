"""Counter-based random numbers: the value depends on a key and a position, never on what was drawn before.

Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). A draw is
addressed by (key, stream, position): the key names seed, epoch and layer, the stream is a sample id or zero, the
position counts elements. So a rank can draw its part of anything without drawing the rest.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numba import prange

from hpdl_mpi.kernels.elementwise import lies_at
from hpdl_mpi.kernels.jit import inline, kernel, parallel_kernel

_M0 = np.uint64(0xD2511F53)
_M1 = np.uint64(0xCD9E8D57)
_W0 = np.uint64(0x9E3779B9)
_W1 = np.uint64(0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_BLOCK = 4096

TO_UNIT = 2.0**-32
"""Times a random 32-bit word it is a number of [0, 1)."""


def derive_key(*parts: int | np.integer | str) -> np.uint64:
    """Return the 64-bit key of a tuple of integers and strings, such as (seed, epoch, layer path)."""
    # A number of NumPy's counts as Python's own.
    text = "\x1f".join(f"{'str' if isinstance(part, str) else 'int'}:{part}" for part in parts)
    return np.uint64(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little"))


@inline
def philox(key, stream, position):
    """Return four random 32-bit words, each in a uint64, for a 64-bit key, stream and position."""
    x0 = position & _LOW
    x1 = position >> _32
    x2 = stream & _LOW
    x3 = stream >> _32
    k0 = key & _LOW
    k1 = key >> _32
    for _ in range(10):
        p0 = _M0 * x0
        p1 = _M1 * x2
        x0 = (p1 >> _32) ^ x1 ^ k0
        x1 = p1 & _LOW
        x2 = (p0 >> _32) ^ x3 ^ k1
        x3 = p0 & _LOW
        k0 = (k0 + _W0) & _LOW
        k1 = (k1 + _W1) & _LOW
    return x0, x1, x2, x3


@kernel
def sample_keys(key, ids, out):
    """Write one random 64-bit number per id; `ids` int64 (n,), `out` uint64 (n,). Equal ids get equal numbers."""
    for i in range(ids.size):
        x0, x1, _, _ = philox(key, np.uint64(ids[i]), np.uint64(0))
        out[i] = (x0 << _32) | x1


@parallel_kernel
def fill_uniform(out, key, low, high):
    """Fill a flat float array with draws from [low, high), then rounded: element i depends on (key, i) alone."""
    for block in prange((out.size + _BLOCK - 1) // _BLOCK):
        for start in range(block * _BLOCK, min(out.size, (block + 1) * _BLOCK), 4):
            words = philox(key, np.uint64(0), np.uint64(start // 4))
            for j in range(min(4, out.size - start)):
                out[start + j] = low + (high - low) * (np.float64(words[j]) * TO_UNIT)


@parallel_kernel
def fill_normal(out, key, deviation):
    """Fill a flat float array with draws from N(0, deviation^2), by Box and Muller (1958) in float64."""
    for block in prange((out.size + _BLOCK - 1) // _BLOCK):
        for start in range(block * _BLOCK, min(out.size, (block + 1) * _BLOCK), 4):
            words = philox(key, np.uint64(0), np.uint64(start // 4))
            for pair in range(2):
                radius = deviation * math.sqrt(-2.0 * math.log((np.float64(words[2 * pair]) + 1.0) * TO_UNIT))
                angle = 2.0 * math.pi * np.float64(words[2 * pair + 1]) * TO_UNIT
                for j in range(2):
                    i = start + 2 * pair + j
                    if i < out.size:
                        out[i] = radius * (math.cos(angle) if j == 0 else math.sin(angle))


@inline
def _drop_fours(x, key, stream, position, threshold, scale, y):
    """Do `drop_row` for all whole fours; without a loop inside, so that LLVM draws for many of them at once."""
    zero = x.dtype.type(0.0)
    for four in range(x.size // 4):
        a, b, c, d = philox(key, stream, position + np.uint64(four))
        y[4 * four] = x[4 * four] * scale if a >= threshold else zero
        y[4 * four + 1] = x[4 * four + 1] * scale if b >= threshold else zero
        y[4 * four + 2] = x[4 * four + 2] * scale if c >= threshold else zero
        y[4 * four + 3] = x[4 * four + 3] * scale if d >= threshold else zero


@kernel
def drop_row(x, key, stream, position, rate, y):
    """y = x / (1 - rate) where kept, else 0; x, y (size,), y may be x.

    Four elements share a draw; that of the first ones is at `position`.
    """
    threshold = np.uint64(rate * 4294967296.0)
    scale = x.dtype.type(1.0 / (1.0 - rate))
    if lies_at(x, y):
        _drop_fours(y, key, stream, position, threshold, scale, y)
    else:
        _drop_fours(x, key, stream, position, threshold, scale, y)
    start = x.size // 4 * 4
    words = philox(key, stream, position + np.uint64(x.size // 4))
    for j in range(x.size - start):
        y[start + j] = x[start + j] * scale if words[j] >= threshold else x.dtype.type(0.0)


@parallel_kernel
def dropout(x, key, sample_ids, rate, y):
    """y = x / (1 - rate) where kept, else 0; x, y (n, size), y may be x, sample_ids int64 (n,).

    Element j of a sample is dropped by (key, sample id, j), so the gradient is the same kernel applied to dy.
    """
    for i in prange(x.shape[0]):
        drop_row(x[i], key, np.uint64(sample_ids[i]), np.uint64(0), rate, y[i])


@parallel_kernel
def dropout_channels(x, key, sample_ids, rate, factors, y):
    """Drop whole channels: x, y (n, pixels, c); channel j of a sample is dropped where `dropout` drops element j.

    `factors`, shape (n, c), is scratch.
    """
    threshold = np.uint64(rate * 4294967296.0)
    scale = x.dtype.type(1.0 / (1.0 - rate))
    zero = x.dtype.type(0.0)
    channels = x.shape[2]
    for i in prange(x.shape[0]):
        stream = np.uint64(sample_ids[i])
        factor = factors[i]
        for start in range(0, channels, 4):
            words = philox(key, stream, np.uint64(start // 4))
            for j in range(min(4, channels - start)):
                factor[start + j] = scale if words[j] >= threshold else zero
        for p in range(x.shape[1]):
            source, target = x[i, p], y[i, p]
            for c in range(channels):
                target[c] = source[c] * scale if factor[c] > zero else zero  # a NaN that is dropped is gone


@parallel_kernel
def dropout_samples(x, key, sample_ids, rate, y):
    """Drop whole samples: x, y (n, size); a sample is dropped where `dropout` drops its first element."""
    threshold = np.uint64(rate * 4294967296.0)
    scale = x.dtype.type(1.0 / (1.0 - rate))
    zero = x.dtype.type(0.0)
    for i in prange(x.shape[0]):
        word, _, _, _ = philox(key, np.uint64(sample_ids[i]), np.uint64(0))
        source, target = x[i], y[i]
        if word >= threshold:
            for j in range(source.size):
                target[j] = source[j] * scale
        else:
            for j in range(source.size):
                target[j] = zero
