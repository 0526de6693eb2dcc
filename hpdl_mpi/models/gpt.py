"""Decoder-only Transformers: GPT-2 (Radford et al., 2019), with the names that its weights have in `transformers`."""

from __future__ import annotations

import math

from hpdl_mpi.models.blocks import added, drop, require_counts, require_heads
from hpdl_mpi.nn import GELU, Embedding, Layer, LayerNorm, LearnedPositions, Linear, SelfAttention, Sequential
from hpdl_mpi.nn.init import Normal

_START = Normal(0.02)
"""Of weights; those whose outputs are added to the residual stream start smaller the more of them there are."""


def gpt(
    vocabulary: int = 50257,
    context: int = 1024,
    *,
    layers: int = 12,
    heads: int = 12,
    width: int = 768,
    dropout: float = 0.0,
) -> Layer:
    """Return GPT-2, for samples of tokens (steps,); outputs are logits (steps, vocabulary). Embedding and head are one.

    Parameters
    ----------
    vocabulary : int
    context : int
        The longest sequence.
    layers, heads, width : int
    dropout : float
        Of embeddings, attention weights and what is added to the residual stream.
    """
    require_counts(vocabulary=vocabulary, context=context, layers=layers, heads=heads, width=width)
    require_heads(width, heads)
    blocks = {f"transformer.h.{i}": _block(heads, width, layers, dropout) for i in range(layers)}
    return Sequential(
        **{
            "transformer.wte": Embedding(vocabulary, width, init=_START),
            "transformer.wpe": LearnedPositions(context, init=_START),
            **drop("transformer.drop", dropout),
            **blocks,
            "transformer.ln_f": LayerNorm(),
            "lm_head": Linear(vocabulary, bias=False, init=_START),
        }
    ).tie("lm_head.weight", to="transformer.wte.weight")


def gpt2_124m() -> Layer:
    """Return the smallest of the published models, of 124 million parameters."""
    return gpt()


def gpt_small() -> Layer:
    """Return six layers of 384 for bytes, and contexts of 256."""
    return gpt(256, 256, layers=6, heads=6, width=384)


def gpt_nano(vocabulary: int = 65, context: int = 64, *, dropout: float = 0.0) -> Layer:
    """Return four layers of 128: what nanoGPT advises for a CPU (Karpathy, 2022)."""
    return gpt(vocabulary, context, layers=4, heads=4, width=128, dropout=dropout)


def _block(heads: int, width: int, layers: int, dropout: float) -> Layer:
    """Return a block: attention and a perceptron, each normalised before and added to what came in."""
    to_stream = Normal(_START.deviation / math.sqrt(2 * layers))
    attention = {
        "ln_1": LayerNorm(),
        "attn.c_attn": Linear(3 * width, in_first=True, init=_START),
        "attn": SelfAttention(heads, causal=True, dropout=dropout),
        "attn.c_proj": Linear(width, in_first=True, init=to_stream),
        **drop("attn.resid_dropout", dropout),
    }
    perceptron = {
        "ln_2": LayerNorm(),
        "mlp.c_fc": Linear(4 * width, in_first=True, init=_START),
        "mlp.act": GELU("tanh"),
        "mlp.c_proj": Linear(width, in_first=True, init=to_stream),
        **drop("mlp.dropout", dropout),
    }
    return Sequential(**{"#attention": added(**attention), "#perceptron": added(**perceptron)})
