"""Layers for sequences against PyTorch's, or a few lines in it, on the same parameters: output and every gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hpdl_mpi import nn
from hpdl_mpi.nn import Layer, members
from tests.parity.convert import assert_close, assert_layers_close, to_torch
from tests.unit.nn.test_sequences import Bench, N

pytestmark = pytest.mark.parity

RNG = np.random.default_rng(0)
TOKENS = np.array([[1, 3, 1, 0], [0, 0, 3, 5], [5, 1, 1, 1]])
"""Of a vocabulary of 7: some come often and some never."""

Case = tuple[Callable[[], Layer], Callable[..., Any], list[np.ndarray]]
"""Our layer, what is to be the same, of parameters by name and inputs, and the inputs; a mask is one of booleans."""


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=(N, *shape))


def mask_of(steps: int) -> np.ndarray:
    """Return which steps are visible: of one with a hole and padding on the right, one padded on the left, and none."""
    mask = np.ones((N, steps), bool)
    mask[0, steps // 3 : steps // 2] = mask[0, steps - steps // 5 :] = False
    mask[1, : steps * 9 // 10] = mask[2] = False
    return mask


def attended(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
    """Return attention of arrays (n, steps, heads, dim), heads side by side; what sees nothing gets zeros.

    PyTorch does not promise those: here a query that sees nothing looks at all keys, and its output is replaced.
    """
    q, k, v = (array.transpose(1, 2) for array in (q, k, v))
    attend = functional.scaled_dot_product_attention
    if mask is None:
        y = attend(q, k, v, is_causal=causal, enable_gqa=True)
    else:
        visible = mask[:, None, None].expand(-1, -1, q.shape[2], -1)
        visible = visible.tril() if causal else visible
        sees = visible.any(-1, keepdim=True)
        y = attend(q, k, v, visible | ~sees, enable_gqa=True).where(sees, 0)
    return y.transpose(1, 2).flatten(2)


def self_attention(
    heads: int, groups: int | None = None, *, steps: int, dim: int, causal: bool = False, masked: bool = False
) -> Case:
    counts = heads, groups or heads, groups or heads

    def theirs(p: dict[str, Tensor], qkv: Tensor, mask: Tensor | None = None) -> Tensor:
        return attended(*qkv.unflatten(-1, (-1, dim)).split(counts, 2), mask, causal=causal)

    inputs = [normal(steps, sum(counts) * dim), mask_of(steps)]
    return lambda: nn.SelfAttention(heads, groups, causal=causal), theirs, inputs if masked else inputs[:1]


def cross_attention(
    heads: int, groups: int | None = None, *, steps: int, memory: int, dim: int, masked: bool = False
) -> Case:
    def theirs(p: dict[str, Tensor], q: Tensor, kv: Tensor, mask: Tensor | None = None) -> Tensor:
        return attended(q.unflatten(-1, (-1, dim)), *kv.unflatten(-1, (-1, dim)).chunk(2, 2), mask, causal=False)

    inputs = [normal(steps, heads * dim), normal(memory, 2 * (groups or heads) * dim), mask_of(memory)]
    return lambda: nn.CrossAttention(heads, groups), theirs, inputs if masked else inputs[:2]


def rotated(qkv: Tensor, heads: int, groups: int, base: float = 10000.0) -> Tensor:
    """Return queries and keys with number c of a head and number c + dim / 2 turned as a pair, as LLaMA does it."""
    x = qkv.unflatten(-1, (heads + 2 * groups, -1))
    steps, dim = x.shape[1], x.shape[3]
    waves = base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = torch.outer(torch.arange(steps), waves).repeat(1, 2)[:, None]
    turned, kept = x.split([heads + groups, groups], 2)
    first, second = turned.chunk(2, -1)
    turned = turned * angles.cos().to(x) + torch.cat([-second, first], -1) * angles.sin().to(x)
    return torch.cat([turned, kept], 2).flatten(2)


def sinusoids(x: Tensor) -> Tensor:
    """Return the table of "Attention is all you need" for sequences like these."""
    _, steps, dim = x.shape
    waves = torch.exp(torch.arange(0, dim, 2, dtype=torch.float64) * (-math.log(10000.0) / dim))
    angles = torch.outer(torch.arange(steps), waves)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :dim].to(x)


def linear(x: Tensor, p: dict[str, Tensor], path: str) -> Tensor:
    return functional.linear(x, p[f"{path}.weight"], p.get(f"{path}.bias"))


def cross_linear(p: dict[str, Tensor], x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Return three queries of an array, and four keys and values of a memory."""
    weights, biases = p["in_proj_weight"].split([3, 4]), p["in_proj_bias"].split([3, 4])
    return functional.linear(x, weights[0], biases[0]), functional.linear(memory, weights[1], biases[1])


def attention_of_distances(p: dict[str, Tensor], x: Tensor) -> Tensor:
    """Return causal attention of three heads of eight, that share keys and values, with its projections."""
    q, k, v = rotated(linear(x, p, "0"), 3, 1).unflatten(-1, (-1, 8)).split([3, 1, 1], 2)
    return linear(attended(q, k, v, mask=None, causal=True), p, "3")


def swiglu(p: dict[str, Tensor], x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return functional.silu(a) * b


def behind(token: Tensor, x: Tensor) -> Tensor:
    """Return sequences with a step, (1, 1, dim), in front."""
    return torch.cat([token.expand(len(x), -1, -1), x], 1)


LAYERS: dict[str, Case] = {
    "SelfAttention": self_attention(3, steps=11, dim=7),
    "SelfAttention, causal": self_attention(3, steps=11, dim=7, causal=True),
    "SelfAttention, masked": self_attention(3, steps=11, dim=7, masked=True),
    "SelfAttention, masked, causal": self_attention(3, steps=11, dim=7, masked=True, causal=True),
    "SelfAttention, shared keys": self_attention(6, 2, steps=13, dim=5),
    "SelfAttention, shared keys, causal": self_attention(6, 2, steps=13, dim=5, causal=True),
    "SelfAttention, shared keys, masked": self_attention(6, 2, steps=13, dim=5, masked=True),
    "SelfAttention, shared keys, masked, causal": self_attention(6, 2, steps=13, dim=5, masked=True, causal=True),
    "SelfAttention, one for all": self_attention(5, 1, steps=9, dim=1, causal=True),
    "SelfAttention, of one step": self_attention(3, steps=1, dim=5),
    "SelfAttention, of one step, masked, causal": self_attention(4, 2, steps=1, dim=5, masked=True, causal=True),
    "SelfAttention, of blocks": self_attention(2, 1, steps=301, dim=19),
    "SelfAttention, of blocks, causal": self_attention(2, steps=531, dim=3, causal=True),
    "SelfAttention, of blocks, masked": self_attention(2, steps=301, dim=3, masked=True),
    "SelfAttention, of blocks, masked, causal": self_attention(2, 1, steps=301, dim=19, masked=True, causal=True),
    "SelfAttention, behind Rotary": (
        lambda: nn.Sequential(nn.Linear(40), nn.Rotary(3, 1), nn.SelfAttention(3, 1, causal=True), nn.Linear(7)),
        attention_of_distances,
        [normal(9, 7)],
    ),
    "CrossAttention": cross_attention(3, steps=5, memory=11, dim=7),
    "CrossAttention, masked": cross_attention(3, steps=5, memory=11, dim=7, masked=True),
    "CrossAttention, shared keys": cross_attention(6, 2, steps=13, memory=9, dim=5),
    "CrossAttention, shared keys, masked": cross_attention(6, 2, steps=13, memory=9, dim=5, masked=True),
    "CrossAttention, of one step": cross_attention(3, steps=1, memory=11, dim=7, masked=True),
    "CrossAttention, to one step": cross_attention(3, steps=11, memory=1, dim=7),
    "CrossAttention, to blocks": cross_attention(2, steps=7, memory=531, dim=19),
    "CrossAttention, to blocks, masked": cross_attention(4, 2, steps=301, memory=531, dim=3, masked=True),
    "CrossLinear": (
        lambda: nn.CrossLinear(3, 4, names=("in_proj_weight", "in_proj_bias")),
        cross_linear,
        [normal(5, 7), normal(3, 7)],
    ),
    "JoinedLinear": (
        lambda: nn.JoinedLinear({"q": 5, "k": 2, "v": 3}),
        lambda p, x: torch.cat([linear(x, p, name) for name in "qkv"], -1),
        [normal(5, 7)],
    ),
    "JoinedLinear, no bias": (
        lambda: nn.JoinedLinear({"gate": 5, "up": 5}, bias=False),
        lambda p, x: torch.cat([linear(x, p, name) for name in ("gate", "up")], -1),
        [normal(7)],
    ),
    "Linear, in first": (
        lambda: nn.Linear(3, in_first=True),
        lambda p, x: functional.linear(x, p["weight"].T, p["bias"]),
        [normal(5, 7)],
    ),
    "Embedding": (lambda: nn.Embedding(7, 5), lambda p, x: functional.embedding(x, p["weight"]), [TOKENS]),
    "Embedding, scaled": (
        lambda: nn.Embedding(7, 5, scale=5**0.5),
        lambda p, x: functional.embedding(x, p["weight"]) * 5**0.5,
        [TOKENS],
    ),
    "Embedding, with mask": (
        lambda: nn.Embedding(7, 5, mask=0),
        lambda p, x: (functional.embedding(x, p["weight"]), (x != 0).to(p["weight"])),
        [TOKENS],
    ),
    "SegmentEmbedding": (nn.SegmentEmbedding, lambda p, x: x + p["weight"][0], [normal(5, 7)]),
    "LearnedPositions": (lambda: nn.LearnedPositions(9), lambda p, x: x + p["weight"][:5], [normal(5, 7)]),
    "LearnedPositions, of a file": (
        lambda: nn.LearnedPositions(5, name="table", leading=True),
        lambda p, x: x + p["table"],
        [normal(5, 7)],
    ),
    "SinusoidalPositions": (nn.SinusoidalPositions, lambda p, x: x + sinusoids(x), [normal(53, 8)]),
    "SinusoidalPositions, odd": (nn.SinusoidalPositions, lambda p, x: x + sinusoids(x), [normal(5, 7)]),
    "Rotary": (lambda: nn.Rotary(3), lambda p, x: rotated(x, 3, 3), [normal(53, 54)]),
    "Rotary, shared keys": (
        lambda: nn.Rotary(4, 2, base=500000.0),
        lambda p, x: rotated(x, 4, 2, 500000.0),
        [normal(5, 80)],
    ),
    "RMSNorm": (nn.RMSNorm, lambda p, x: functional.rms_norm(x, (7,), p["weight"], 1e-6), [normal(5, 7)]),
    "RMSNorm, of features": (
        lambda: nn.RMSNorm(eps=0.01),
        lambda p, x: functional.rms_norm(x, (37,), p["weight"], 0.01),
        [normal(37)],
    ),
    "SwiGLU": (nn.SwiGLU, swiglu, [normal(5, 14)]),
    "SwiGLU, of features": (nn.SwiGLU, swiglu, [normal(74)]),
    "ClassToken": (nn.ClassToken, lambda p, x: behind(p["weight"], x), [normal(5, 7)]),
    "ClassToken, of images": (
        lambda: nn.ClassToken(name="token"),
        lambda p, x: behind(p["token"], x.flatten(2).transpose(1, 2)),
        [normal(3, 5, 7)],
    ),
    "FirstStep": (nn.FirstStep, lambda p, x: x[:, 0], [normal(5, 7)]),
    "FirstStep, of one": (nn.FirstStep, lambda p, x: x[:, 0], [normal(1, 7)]),
}


def as_theirs(array: np.ndarray, dtype: type) -> Tensor:
    """Return an input as PyTorch takes it; tokens and masks have no gradient."""
    return to_torch(array.astype(dtype)).requires_grad_() if array.dtype == np.float64 else to_torch(array)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("ours", "theirs", "inputs"), LAYERS.values(), ids=LAYERS)
def test_layer_is_that_of_pytorch(
    ours: Callable[[], Layer], theirs: Callable[..., Any], inputs: list[np.ndarray], dtype: type
) -> None:
    values = [array if array.dtype == np.int64 else array.astype(dtype) for array in inputs]
    bench = Bench(ours(), *values, dtype=dtype)
    params = {name: to_torch(array).requires_grad_() for name, array in bench.named.items()}
    x = [as_theirs(array, dtype) for array in inputs]
    y = members(theirs(params, *x))
    dy = [RNG.normal(size=array.shape).astype(dtype) if array.requires_grad else None for array in y]
    torch.autograd.backward(
        [array for array in y if array.requires_grad], [to_torch(array) for array in dy if array is not None]
    )
    for found, expected in zip(members(bench.run(*values)), y, strict=True):
        assert_close(found, expected)
    dx = bench.step(tuple(dy) if len(dy) > 1 else dy[0])
    # Of one size: that of queries is zero but for rounding where there is one key to look at.
    assert_layers_close(
        {f"input {number}": array for number, array in enumerate(dx) if array is not None},
        {f"input {number}": array.grad for number, array in enumerate(x) if array.requires_grad},
    )
    assert_layers_close(bench.named_grads, {name: array.grad for name, array in params.items()})
