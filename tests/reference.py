"""Naive twins: kernels, layers, losses, optimizers and schedules once more, from their definitions, in float64.

They are written to be read, not to be fast: one loop per sum that the definition has, no code of the package. Images
are NHWC, weights of convolutions (k, kh, kw, c), as in the package.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

Array = np.ndarray
Pair = tuple[int, int]

# Layers


def windows(x: Array, kernel_size: Pair, stride: Pair, padding: Pair, fill: float) -> Iterator[tuple[int, int, Array]]:
    """Yield (i, j, the window (n, kh, kw, c) under output pixel (i, j))."""
    (kh, kw), (sh, sw), (ph, pw) = kernel_size, stride, padding
    padded = np.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)), constant_values=fill)
    for i in range((padded.shape[1] - kh) // sh + 1):
        for j in range((padded.shape[2] - kw) // sw + 1):
            yield i, j, padded[:, i * sh : i * sh + kh, j * sw : j * sw + kw]


def _map_windows(pixels: Iterator[tuple[int, int, Array]]) -> Array:
    """Return (n, ho, wo, c) of (i, j, (n, c))."""
    values = {(i, j): value for i, j, value in pixels}
    height, width = (1 + max(place[dim] for place in values) for dim in (0, 1))
    return np.stack([np.stack([values[i, j] for j in range(width)], 1) for i in range(height)], 1)


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | float = 0.0,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    groups: int = 1,
) -> Array:
    """y[n, i, j, k] = sum over r, s, c of weight[k, r, s, c] x[n, i stride + r - padding, ..., c] + bias[k].

    With groups, c counts the channels of the group that k is in.
    """
    if groups > 1:
        parts = zip(np.split(x, groups, -1), np.split(weight, groups), strict=True)
        return np.concatenate([conv2d(*part, stride=stride, padding=padding) for part in parts], -1) + bias
    patches = windows(x, weight.shape[1:3], stride, padding, 0.0)
    return _map_windows((i, j, np.einsum("nrsc,krsc->nk", patch, weight) + bias) for i, j, patch in patches)


def max_pool(x: Array, kernel_size: Pair, *, stride: Pair, padding: Pair = (0, 0)) -> Array:
    """Return the maximum of each window; padding never wins."""
    return _map_windows((i, j, w.max((1, 2))) for i, j, w in windows(x, kernel_size, stride, padding, -math.inf))


def avg_pool(x: Array, kernel_size: Pair, *, stride: Pair, padding: Pair = (0, 0)) -> Array:
    """Return the mean of each window; padding counts as zeros."""
    return _map_windows((i, j, w.mean((1, 2))) for i, j, w in windows(x, kernel_size, stride, padding, 0.0))


def adaptive_avg_pool(x: Array, output_size: Pair) -> Array:
    """Return the mean of each bin: from the pixel in which it begins to that in which it ends, both counted whole."""

    def bins(size: int, count: int) -> list[slice]:
        return [slice(math.floor(i * size / count), math.ceil((i + 1) * size / count)) for i in range(count)]

    rows, columns = (bins(*sizes) for sizes in zip(x.shape[1:3], output_size, strict=True))
    return np.stack([np.stack([x[:, r, c].mean((1, 2)) for c in columns], 1) for r in rows], 1)


def linear(x: Array, weight: Array, bias: Array | float = 0.0) -> Array:
    """y[..., o] = sum over i of weight[o, i] x[..., i] + bias[o]."""
    return np.einsum("...i,oi->...o", x, weight) + bias


def batch_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Each channel minus its mean over all else, over the root of its variance, times weight, plus bias."""
    others = tuple(range(x.ndim - 1))
    return (x - x.mean(others)) / np.sqrt(x.var(others) + eps) * weight + bias


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Each row minus its mean, over the root of its variance, times weight, plus bias."""
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight + bias


def group_norm(x: Array, groups: int, weight: Array, bias: Array, eps: float) -> Array:
    """As `layer_norm`, of all of a sample that is in a group of channels."""
    parts = []
    for part in np.split(x, groups, -1):
        others = tuple(range(1, x.ndim))
        parts.append((part - part.mean(others, keepdims=True)) / np.sqrt(part.var(others, keepdims=True) + eps))
    return np.concatenate(parts, -1) * weight + bias


def leaky_relu(x: Array, slope: float) -> Array:
    """x where positive, else slope x."""
    return np.where(x > 0, x, slope * x)


def relu(x: Array) -> Array:
    """max(x, 0)."""
    return np.maximum(x, 0.0)


def relu6(x: Array) -> Array:
    """min(max(x, 0), 6)."""
    return np.minimum(np.maximum(x, 0.0), 6.0)


def silu(x: Array) -> Array:
    """x / (1 + exp(-x))."""
    return x / (1.0 + np.exp(-x))


def gelu(x: Array) -> Array:
    """x times the standard normal distribution."""
    return x * np.array([0.5 * math.erfc(-value / math.sqrt(2.0)) for value in x.reshape(-1)]).reshape(x.shape)


def gelu_tanh(x: Array) -> Array:
    """`gelu` as GPT-2 has it."""
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + np.exp(-x))


def softmax(x: Array) -> Array:
    """Return exp(x) / sum of exp(x), over the last dimension."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def flatten(x: Array) -> Array:
    """Each sample as one row."""
    return x.reshape(len(x), -1)


# Losses: sums over samples


def cross_entropy(logits: Array, targets: Array, smoothing: float = 0.0) -> float:
    """Return the sum over samples of -<wanted, log softmax>, `wanted` being the smoothed target distribution."""
    total = 0.0
    for row, target in zip(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), strict=True):
        wanted = [smoothing / row.size + (1.0 - smoothing) * (j == target) for j in range(row.size)]
        log_softmax = row - row.max() - math.log(np.exp(row - row.max()).sum())
        # 0 log 0 = 0: a class that is not wanted costs nothing, however unlikely
        total -= sum(w * p for w, p in zip(wanted, log_softmax, strict=True) if w)
    return total


def squared_error(outputs: Array, targets: Array) -> float:
    """Return the sum over samples of the mean of (output - target)^2."""
    return float(sum(np.mean((o - t) ** 2) for o, t in zip(outputs, targets, strict=True)))


def huber(outputs: Array, targets: Array, delta: float) -> float:
    """Return the sum over samples of the mean of Huber's loss."""

    def loss(error: float) -> float:
        return 0.5 * error**2 if abs(error) <= delta else delta * (abs(error) - 0.5 * delta)

    return sum(float(np.mean([loss(e) for e in (o - t).reshape(-1)])) for o, t in zip(outputs, targets, strict=True))


# Random numbers


def philox4x32(counter: Sequence[int], key: Sequence[int], rounds: int = 10) -> tuple[int, ...]:
    """Philox4x32 of Salmon, Moraes, Dror and Shaw (2011), in Python's integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def words(key: int, stream: int, count: int) -> list[int]:
    """Return `count` random 32-bit words of one stream: four for each position 0, 1, ..."""
    halves = [(value % 2**32, value >> 32 & 0xFFFFFFFF) for value in (key, stream)]
    drawn: list[int] = []
    for position in range(-(-count // 4)):
        drawn += philox4x32((position % 2**32, position >> 32, *halves[1]), halves[0])
    return drawn[:count]


def uniform(count: int, key: int, low: float, high: float) -> Array:
    """U(low, high)."""
    return np.array([low + (high - low) * word / 2**32 for word in words(key, 0, count)])


def normal(count: int, key: int, deviation: float) -> Array:
    """N(0, deviation^2) by Box and Muller: two normals of two words."""
    drawn = words(key, 0, count + count % 2)
    values: list[float] = []
    for first, second in zip(drawn[::2], drawn[1::2], strict=True):
        radius = deviation * math.sqrt(-2.0 * math.log((first + 1) / 2**32))
        angle = 2.0 * math.pi * second / 2**32
        values += [radius * math.cos(angle), radius * math.sin(angle)]
    return np.array(values[:count])


def dropout(x: Array, key: int, sample_ids: Iterable[int], rate: float) -> Array:
    """Zero element j of a sample where word j of its stream is below rate 2^32, scale the rest by 1 / (1 - rate)."""
    rows = [
        [
            0.0 if word < rate * 2**32 else value / (1.0 - rate)
            for value, word in zip(row, words(key, i, row.size), strict=True)
        ]
        for row, i in zip(flatten(x), (int(i) for i in sample_ids), strict=True)
    ]
    return np.array(rows).reshape(x.shape)


def dropout_channels(x: Array, key: int, sample_ids: Iterable[int], rate: float) -> Array:
    """As `dropout`, with one draw for each channel."""
    factors = dropout(np.ones((len(x), x.shape[-1])), key, sample_ids, rate)
    return np.stack([np.where(factor > 0, sample * factor, 0.0) for sample, factor in zip(x, factors, strict=True)])


def stochastic_depth(x: Array, key: int, sample_ids: Iterable[int], rate: float) -> Array:
    """As `dropout`, with one draw for each sample."""
    factors = dropout(np.ones((len(x), 1)), key, sample_ids, rate)[:, 0]
    return np.stack(
        [sample * factor if factor else np.zeros_like(sample) for sample, factor in zip(x, factors, strict=True)]
    )


# Optimizers: return the new parameters and the new state


def sgd(
    p: Array,
    g: Array,
    velocity: Array,
    *,
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    l1: float = 0.0,
) -> tuple[Array, Array]:
    """Gradient descent."""
    g = g + weight_decay * p + l1 * np.sign(p)
    velocity = momentum * velocity + g
    return p - lr * (g + momentum * velocity if nesterov else velocity), velocity


def adam(
    p: Array,
    g: Array,
    first: Array,
    second: Array,
    step: int,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
) -> tuple[Array, Array, Array]:
    """Adam, or AdamW where decay is decoupled, at step 1, 2, ..."""
    if not decoupled:
        g = g + weight_decay * p
    first = betas[0] * first + (1 - betas[0]) * g
    second = betas[1] * second + (1 - betas[1]) * g**2
    mean, mean_square = first / (1 - betas[0] ** step), second / (1 - betas[1] ** step)
    shrunk = p * (1 - lr * weight_decay) if decoupled else p
    return shrunk - lr * mean / (np.sqrt(mean_square) + eps), first, second


def moving_averages(values: Iterable[Array], decay: float) -> list[Array]:
    """Return the exponential moving average after each of the values; the first one is where it begins."""
    averages: list[Array] = []
    for value in values:
        averages.append(decay * averages[-1] + (1 - decay) * value if averages else value)
    return averages


def lars(
    p: Array, g: Array, velocity: Array, *, lr: float, momentum: float, weight_decay: float, trust: float
) -> tuple[Array, Array]:
    """Gradient descent with momentum, the gradient of a parameter in proportion to it unless trust is 0."""
    slope = g + weight_decay * p
    norm = np.linalg.norm(g) + weight_decay * np.linalg.norm(p)
    if trust and norm and np.linalg.norm(p):
        slope = slope * trust * np.linalg.norm(p) / norm
    velocity = momentum * velocity + slope
    return p - lr * velocity, velocity


def lamb(
    p: Array,
    g: Array,
    first: Array,
    second: Array,
    step: int,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    adapts: bool,
) -> tuple[Array, Array, Array]:
    """AdamW, the step of a parameter in proportion to it if it adapts."""
    moved, first, second = adam(p, g, first, second, step, lr=1.0, betas=betas, eps=eps)
    direction = p - moved + weight_decay * p
    rate = np.linalg.norm(p) / np.linalg.norm(direction) if adapts else 1.0
    return p - lr * rate * direction, first, second


def clip(g: Array, limit: float) -> Array:
    """Return g, shortened to a norm of `limit` if it is longer."""
    norm = math.sqrt(math.fsum(value**2 for value in g.reshape(-1)))
    return g * (limit / norm) if norm > limit else g


# Schedules: the factor of step 0, 1, ... of `num_steps`


def warmed_up(step: int, num_steps: int, warmup_steps: int, name: str, **settings: float) -> float:
    """Return the factor of the schedule `name` with a linear warm-up in front."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if name == "inverse_sqrt":
        return math.sqrt(max(1, warmup_steps) / (step + 1))
    step, num_steps = step - warmup_steps, num_steps - warmup_steps
    if name == "step":
        return settings["gamma"] ** math.floor(step / settings["every"])
    if name == "cosine":
        final = settings["final"]
        return final + (1 - final) * (1 + math.cos(math.pi * step / num_steps)) / 2
    return 1.0
