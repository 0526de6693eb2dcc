"""LLaMA (Touvron et al., "LLaMA: Open and efficient foundation language models", 2023).

The weights have the names of ``LlamaForCausalLM`` in `transformers`.
"""

from __future__ import annotations

from hpdl_mpi.base.errors import require
from hpdl_mpi.models.blocks import added, require_counts, require_heads
from hpdl_mpi.nn import (
    Embedding,
    JoinedLinear,
    Layer,
    Linear,
    RMSNorm,
    Rotary,
    SelfAttention,
    Sequential,
    SwiGLU,
)
from hpdl_mpi.nn.init import Normal

_START = Normal(0.02)


def llama(
    vocabulary: int = 32000,
    *,
    layers: int = 32,
    heads: int = 32,
    kv_heads: int | None = None,
    width: int = 4096,
    hidden: int = 11008,
    base: float = 10000.0,
    eps: float = 1e-6,
    dropout: float = 0.0,
    tied: bool = False,
) -> Layer:
    """Return LLaMA, for samples of tokens (steps,) of any length; outputs are logits (steps, vocabulary).

    By default it is that of 7 billion parameters.

    Parameters
    ----------
    vocabulary : int
    layers, heads : int
    kv_heads : int, optional
        A divisor of `heads`, of which as many share keys and values; by default each has its own.
    width : int
    hidden : int
        Width inside the perceptrons.
    base : float
        Of rotary positions (rope_theta).
    eps : float
        Of normalisation.
    dropout : float
        Of attention weights.
    tied : bool
        Whether embedding and head are one.
    """
    kv_heads = heads if kv_heads is None else kv_heads
    require_counts(vocabulary=vocabulary, layers=layers, heads=heads, kv_heads=kv_heads, width=width, hidden=hidden)
    require_heads(width, heads)
    dim = width // heads
    require("width", width, dim % 2 == 0, f"a multiple of {2 * heads}: rotary positions turn pairs of a head's numbers")
    projections = {"q_proj": width, "k_proj": kv_heads * dim, "v_proj": kv_heads * dim}

    def block() -> Layer:
        attention = {
            "input_layernorm": RMSNorm(eps=eps),
            "self_attn": _joined(projections),
            "#rotary": Rotary(heads, kv_heads, base=base),
            "self_attn.heads": SelfAttention(heads, kv_heads, causal=True, dropout=dropout),
            "self_attn.o_proj": Linear(width, bias=False, init=_START),
        }
        perceptron = {
            "post_attention_layernorm": RMSNorm(eps=eps),
            "mlp": _joined({"gate_proj": hidden, "up_proj": hidden}),
            "mlp.act_fn": SwiGLU(),
            "mlp.down_proj": Linear(width, bias=False, init=_START),
        }
        return Sequential(**{"#attention": added(**attention), "#perceptron": added(**perceptron)})

    model = Sequential(
        **{
            "model.embed_tokens": Embedding(vocabulary, width, init=_START),
            **{f"model.layers.{i}": block() for i in range(layers)},
            "model.norm": RMSNorm(eps=eps),
            "lm_head": Linear(vocabulary, bias=False, init=_START),
        }
    )
    return model.tie("lm_head.weight", to="model.embed_tokens.weight") if tied else model


def _joined(out_features: dict[str, int]) -> Layer:
    return JoinedLinear(out_features, bias=False, init=_START)
