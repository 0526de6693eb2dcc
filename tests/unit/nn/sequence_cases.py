"""The layers for sequences under test, each with its naive twin; `cases.LAYERS` has them too."""

from __future__ import annotations

import numpy as np

from hpdl_mpi.nn import (
    JoinedLinear,
    LearnedPositions,
    Linear,
    RMSNorm,
    Rotary,
    SelfAttention,
    Sequential,
    SinusoidalPositions,
    SwiGLU,
)
from tests import reference as ref
from tests import sequence_reference as seq
from tests.unit.nn.rig import Case

SEQUENCES: dict[str, Case] = {
    "SelfAttention": Case(lambda: SelfAttention(2), (5, 18), lambda x, p: seq.self_attention(x, 2), joined=True),
    "SelfAttention, causal": Case(
        lambda: SelfAttention(3, causal=True), (7, 18), lambda x, p: seq.self_attention(x, 3, causal=True), joined=True
    ),
    "SelfAttention, shared keys": Case(
        lambda: SelfAttention(4, 2, causal=True),
        (3, 24),
        lambda x, p: seq.self_attention(x, 4, 2, causal=True),
        joined=True,
    ),
    "SelfAttention, of one step": Case(
        lambda: SelfAttention(2, 1), (1, 8), lambda x, p: seq.self_attention(x, 2, 1), joined=True
    ),
    "Rotary": Case(lambda: Rotary(2, 1), (5, 16), lambda x, p: seq.rotated(x, 2, 1)),
    "Rotary, in place": Case(
        lambda: Sequential(Linear(12), Rotary(1, base=50.0)),
        (4, 3),
        lambda x, p: seq.rotated(ref.linear(x, p["0.weight"], p["0.bias"]), 1, 1, 50.0),
    ),
    "LearnedPositions": Case(lambda: LearnedPositions(6), (4, 3), lambda x, p: x + p["weight"][:4]),
    "LearnedPositions, in place": Case(
        lambda: Sequential(Linear(5), LearnedPositions(4)),
        (4, 3),
        lambda x, p: ref.linear(x, p["0.weight"], p["0.bias"]) + p["1.weight"],
    ),
    "SinusoidalPositions": Case(SinusoidalPositions, (6, 7), lambda x, p: x + seq.sinusoids(6, 7)),
    "RMSNorm": Case(lambda: RMSNorm(eps=1e-3), (4, 5), lambda x, p: seq.rms_norm(x, p["weight"], 1e-3)),
    "SwiGLU": Case(SwiGLU, (3, 8), lambda x, p: seq.swiglu(x)),
    "Linear, in first": Case(
        lambda: Linear(5, in_first=True, names=("w", "b")), (4, 3), lambda x, p: ref.linear(x, p["w"].T, p["b"])
    ),
    "JoinedLinear": Case(
        lambda: JoinedLinear({"q": 2, "kv": 3}),
        (4, 3),
        lambda x, p: ref.linear(
            x,
            *(np.concatenate([p[f"q.{name}"], p[f"kv.{name}"]]) for name in ("weight", "bias")),
        ),
    ),
    "JoinedLinear, no bias": Case(
        lambda: JoinedLinear({"gate": 2}, bias=False), (3,), lambda x, p: ref.linear(x, p["gate.weight"])
    ),
}
