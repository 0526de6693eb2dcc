"""The layers for sequences under test, each with its naive twin; `cases.LAYERS` has them too."""

from __future__ import annotations

import numpy as np

from hpdl_mpi.nn import (
    ClassToken,
    CrossAttention,
    CrossLinear,
    Each,
    FirstStep,
    JoinedLinear,
    LearnedPositions,
    Linear,
    Members,
    Residual,
    RMSNorm,
    Rotary,
    SegmentEmbedding,
    SelfAttention,
    Sequential,
    SinusoidalPositions,
    SwiGLU,
    Tanh,
)
from tests import reference as ref
from tests import sequence_reference as seq
from tests.unit.nn.rig import Case, Parameters
from tests.unit.nn.several import Join, Split


def _cross_linear(x: np.ndarray, p: Parameters) -> np.ndarray:
    """Return two queries of each of the first three steps, and four keys and values of each other one."""
    parts = ref.linear(x[:, :3], p["1.w"][:2], p["1.b"][:2]), ref.linear(x[:, 3:], p["1.w"][2:], p["1.b"][2:])
    return np.concatenate([part.reshape(len(x), -1) for part in parts], axis=1)


def _each(x: np.ndarray, p: Parameters) -> np.ndarray:
    first, second = ref.linear(x[:, :2], p["1.one.weight"], p["1.one.bias"]), np.tanh(x[:, 2:])
    return np.concatenate([part.reshape(len(x), -1) for part in (first, second)], axis=1)


def _behind(token: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return sequences with a step, (1, 1, dim), in front."""
    return np.concatenate([np.repeat(token, len(x), axis=0), x], axis=1)


def _decoded(x: np.ndarray, p: Parameters) -> np.ndarray:
    """Return steps to which is added what they see of a memory, behind a mask; the memory stands first."""
    memory, mask, steps = x[:, :4], x[:, 4:8, 0], x[:, 8:]
    q, kv = ref.linear(steps, p["2.w"][:4], p["2.b"][:4]), ref.linear(memory, p["2.w"][4:], p["2.b"][4:])
    return steps + seq.cross_attention(q, kv, 2, mask=mask)


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
    "SelfAttention, masked": Case(
        lambda: Sequential(Split(4, 4, masks=(1,)), SelfAttention(2), Members(0)),
        (8, 6),
        lambda x, p: seq.self_attention(x[:, :4], 2, mask=x[:, 4:, 0]),
        joined=True,
    ),
    "CrossAttention": Case(
        lambda: Sequential(Split(3, 5), Each(Linear(4), Linear(8, bias=False)), CrossAttention(2)),
        (8, 6),
        lambda x, p: seq.cross_attention(
            ref.linear(x[:, :3], p["1.0.weight"], p["1.0.bias"]), ref.linear(x[:, 3:], p["1.1.weight"]), 2
        ),
        joined=True,
    ),
    "CrossLinear": Case(
        lambda: Sequential(Split(3, 4), CrossLinear(2, 4, names=("w", "b")), Join()), (7, 5), _cross_linear
    ),
    "Each": Case(lambda: Sequential(Split(2, 3), Each(one=Linear(3), other=Tanh()), Join()), (5, 4), _each),
    "Residual, of several arrays": Case(
        lambda: Sequential(
            Split(4, 4, 3, masks=(1,)),
            Members(2, 0, 1),
            **{
                "2": Residual(
                    Sequential(**{"": CrossLinear(4, 8, names=("w", "b")), "#heads": CrossAttention(2)}),
                    names=("", "shortcut"),
                ),
                "3": Members(0),
            },
        ),
        (11, 4),
        _decoded,
        joined=True,
    ),
    "Rotary": Case(lambda: Rotary(2, 1), (5, 16), lambda x, p: seq.rotated(x, 2, 1)),
    "Rotary, in place": Case(
        lambda: Sequential(Linear(12), Rotary(1, base=50.0)),
        (4, 3),
        lambda x, p: seq.rotated(ref.linear(x, p["0.weight"], p["0.bias"]), 1, 1, 50.0),
    ),
    "LearnedPositions": Case(lambda: LearnedPositions(6), (4, 3), lambda x, p: x + p["weight"][:4]),
    "LearnedPositions, of a file": Case(
        lambda: LearnedPositions(4, name="table", leading=True), (4, 3), lambda x, p: x + p["table"][0]
    ),
    "LearnedPositions, in place": Case(
        lambda: Sequential(Linear(5), LearnedPositions(4)),
        (4, 3),
        lambda x, p: ref.linear(x, p["0.weight"], p["0.bias"]) + p["1.weight"],
    ),
    "SegmentEmbedding": Case(SegmentEmbedding, (4, 3), lambda x, p: x + p["weight"][0]),
    "SinusoidalPositions": Case(SinusoidalPositions, (6, 7), lambda x, p: x + seq.sinusoids(6, 7)),
    "RMSNorm": Case(lambda: RMSNorm(eps=1e-3), (4, 5), lambda x, p: seq.rms_norm(x, p["weight"], 1e-3)),
    "SwiGLU": Case(SwiGLU, (3, 8), lambda x, p: seq.swiglu(x)),
    "ClassToken": Case(ClassToken, (4, 3), lambda x, p: _behind(p["weight"], x)),
    "ClassToken, of images": Case(
        lambda: ClassToken(name="token"), (2, 3, 5), lambda x, p: _behind(p["token"], x.reshape(len(x), 6, 5))
    ),
    "FirstStep": Case(FirstStep, (4, 3), lambda x, p: x[:, 0]),
    "FirstStep, of one": Case(FirstStep, (1, 3), lambda x, p: x[:, 0]),
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
