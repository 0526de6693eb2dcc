"""BERT (Devlin et al., "BERT: Pre-training of deep bidirectional Transformers for language understanding", 2018).

The weights have the names of ``BertForMaskedLM`` in `transformers`.
"""

from __future__ import annotations

from hpdl_mpi.models.blocks import PADDING, added, drop, require_counts, require_heads
from hpdl_mpi.nn import (
    GELU,
    Embedding,
    JoinedLinear,
    Layer,
    LayerNorm,
    LearnedPositions,
    Linear,
    Members,
    SegmentEmbedding,
    SelfAttention,
    Sequential,
)
from hpdl_mpi.nn.init import Normal

_START = Normal(0.02)
_EPS = 1e-12


def bert(
    vocabulary: int = 30522,
    context: int = 512,
    *,
    layers: int = 12,
    heads: int = 12,
    width: int = 768,
    hidden: int | None = None,
    dropout: float = 0.1,
) -> Layer:
    """Return BERT to learn from masked tokens, for samples (steps,); outputs are logits (steps, vocabulary).

    By default it is the base model. Token 0 is padding: nothing looks at it. A text is one segment. Embedding and
    output layer are one. `kernels.masking.mask_tokens` makes inputs and targets of texts.

    Parameters
    ----------
    vocabulary : int
    context : int
        The longest sequence.
    layers, heads, width : int
    hidden : int, optional
        Width inside the perceptrons, by default four times `width`.
    dropout : float
        Of embeddings, attention weights and what is added to the residual stream.
    """
    hidden = 4 * width if hidden is None else hidden
    require_counts(vocabulary=vocabulary, context=context, layers=layers, heads=heads, width=width, hidden=hidden)
    require_heads(width, heads)
    embeddings = {
        "word_embeddings": Embedding(vocabulary, width, mask=PADDING, init=_START),
        "position_embeddings": LearnedPositions(context, init=_START),
        "token_type_embeddings": SegmentEmbedding(2, init=_START),
        "LayerNorm": LayerNorm(eps=_EPS),
        **drop("dropout", dropout),
    }
    predictions = {
        "transform.dense": Linear(width, init=_START),
        "transform.activation": GELU(),
        "transform.LayerNorm": LayerNorm(eps=_EPS),
        "": Linear(vocabulary, init=_START, names=("decoder.weight", "bias")),
    }
    return Sequential(
        **{
            "bert.embeddings": Sequential(**embeddings),
            **{f"bert.encoder.layer.{i}": _block(heads, width, hidden, dropout) for i in range(layers)},
            "#texts": Members(0),
            "cls.predictions": Sequential(**predictions),
        }
    ).tie("cls.predictions.decoder.weight", to="bert.embeddings.word_embeddings.weight")


def _block(heads: int, width: int, hidden: int, rate: float) -> Layer:
    """Return a block, for steps and their mask: attention and a perceptron, each added and then normalised."""
    attention = {
        "attention.self": JoinedLinear(dict.fromkeys(("query", "key", "value"), width), init=_START),
        "attention.self.heads": SelfAttention(heads, dropout=rate),
        "attention.output.dense": Linear(width, init=_START),
        **drop("attention.output.dropout", rate),
    }
    perceptron = {
        "intermediate.dense": Linear(hidden, init=_START),
        "intermediate.activation": GELU(),
        "output.dense": Linear(width, init=_START),
        **drop("output.dropout", rate),
    }
    return Sequential(
        **{
            "#attention": added(**attention),
            "attention.output.LayerNorm": LayerNorm(eps=_EPS),
            "#perceptron": added(**perceptron),
            "output.LayerNorm": LayerNorm(eps=_EPS),
        }
    )
