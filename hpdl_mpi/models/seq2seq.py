"""The Transformer: an encoder and a decoder (Vaswani et al., "Attention is all you need", 2017).

Its layers have the names of ``torch.nn.Transformer``.
"""

from __future__ import annotations

import math

from hpdl_mpi.models.blocks import PADDING, added, drop, require_counts, require_heads
from hpdl_mpi.nn import (
    CrossAttention,
    CrossLinear,
    Each,
    Embedding,
    Layer,
    LayerNorm,
    Linear,
    Members,
    ReLU,
    SelfAttention,
    Sequential,
    SinusoidalPositions,
)
from hpdl_mpi.nn.init import GlorotUniform, Normal

_START = GlorotUniform()
_IN_PROJECTION = ("in_proj_weight", "in_proj_bias")


def seq2seq(
    source_vocabulary: int = 32,
    target_vocabulary: int = 64,
    *,
    layers: int = 3,
    heads: int = 4,
    width: int = 256,
    hidden: int = 1024,
    dropout: float = 0.0,
    norm_first: bool = False,
    tied: bool = False,
) -> Layer:
    """Return an encoder and a decoder, for pairs of tokens, (steps,) each: the source, and the target so far.

    Outputs are logits of what follows in the target, (target steps, target_vocabulary). Token 0 is padding: nothing
    looks at it in the source. In the target it stands behind all else, where no step looks.

    Between layers of the encoder go the source, its mask and the target; between those of the decoder the target, the
    memory (what the encoder makes of the source) and the mask. So the model can be cut between any two.

    Parameters
    ----------
    source_vocabulary, target_vocabulary : int
    layers : int
        Of the encoder, and of the decoder.
    heads, width : int
    hidden : int
        Width inside the perceptrons.
    dropout : float
        Of embeddings, attention weights, inside the perceptrons, and of what is added to the residual stream.
    norm_first : bool
        Whether layers normalise what they read, and not what they return as in the paper. As in PyTorch, encoder and
        decoder end in a normalisation either way.
    tied : bool
        Whether the embedding of the target and the output layer are one.
    """
    require_counts(layers=layers, heads=heads, width=width, hidden=hidden)
    require_heads(width, heads)
    sizes = heads, width, hidden, dropout, norm_first
    model = Sequential(
        **{
            "#embeddings": Each(
                source_embedding=_embedding(source_vocabulary, width, dropout, PADDING),
                target_embedding=_embedding(target_vocabulary, width, dropout, None),
            ),
            **{f"encoder.layers.{i}": _encoder_layer(*sizes) for i in range(layers)},
            "encoder.norm": LayerNorm(),
            "#target_first": Members(2, 0, 1),
            **{f"decoder.layers.{i}": _decoder_layer(*sizes) for i in range(layers)},
            "#target_alone": Members(0),
            "decoder.norm": LayerNorm(),
            "head": Linear(target_vocabulary, bias=False, init=_START),
        }
    )
    return model.tie("head.weight", to="target_embedding.weight") if tied else model


def _embedding(vocabulary: int, width: int, rate: float, mask: int | None) -> Layer:
    start = Normal(1 / math.sqrt(width))
    return Sequential(
        **{
            "#tokens": Embedding(vocabulary, width, mask=mask, scale=math.sqrt(width), init=start),
            "#positions": SinusoidalPositions(),
            **drop("dropout", rate),
        }
    )


def _encoder_layer(heads: int, width: int, hidden: int, rate: float, norm_first: bool) -> Layer:
    """Return a layer that reads the source and its mask."""
    parts = {"attention": _self_attention(heads, width, rate), "perceptron": _perceptron(width, hidden, rate)}
    return _normalized(parts, norm_first)


def _decoder_layer(heads: int, width: int, hidden: int, rate: float, norm_first: bool) -> Layer:
    """Return a layer that reads the target, the memory and its mask."""
    parts = {
        "attention": _self_attention(heads, width, rate, causal=True),
        "cross_attention": {
            "multihead_attn": CrossLinear(width, 2 * width, init=_START, names=_IN_PROJECTION),
            "multihead_attn.heads": CrossAttention(heads, dropout=rate),
            "multihead_attn.out_proj": Linear(width, init=_START),
            **drop("dropout2", rate),
        },
        "perceptron": _perceptron(width, hidden, rate),
    }
    return _normalized(parts, norm_first)


def _self_attention(heads: int, width: int, rate: float, *, causal: bool = False) -> dict[str, Layer]:
    return {
        "self_attn": Linear(3 * width, init=_START, names=_IN_PROJECTION),
        "self_attn.heads": SelfAttention(heads, causal=causal, dropout=rate, masked=not causal),
        "self_attn.out_proj": Linear(width, init=_START),
        **drop("dropout1", rate),
    }


def _perceptron(width: int, hidden: int, rate: float) -> dict[str, Layer]:
    return {
        "linear1": Linear(hidden, init=_START),
        "activation": ReLU(),
        **drop("dropout", rate),
        "linear2": Linear(width, init=_START),
        **drop("dropout3", rate),
    }


def _normalized(parts: dict[str, dict[str, Layer]], norm_first: bool) -> Layer:
    """Return parts whose results are added to what they read, each with a normalisation before or behind it."""
    layers: dict[str, Layer] = {}
    for number, (name, body) in enumerate(parts.items(), 1):
        norm = {f"norm{number}": LayerNorm()}
        if norm_first:
            layers[f"#{name}"] = added(**norm, **body)
        else:
            layers |= {f"#{name}": added(**body), **norm}
    return Sequential(**layers)
