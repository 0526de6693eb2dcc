"""Vision Transformers (Dosovitskiy et al., "An image is worth 16x16 words", 2021).

They have the names of files of weights of ``ViTForImageClassification`` in `transformers`.
"""

from __future__ import annotations

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.models.blocks import added, drop, require_counts, require_heads
from hpdl_mpi.nn import (
    GELU,
    ClassToken,
    Conv2d,
    FirstStep,
    JoinedLinear,
    Layer,
    LayerNorm,
    LearnedPositions,
    Linear,
    Residual,
    SelfAttention,
    Sequential,
)
from hpdl_mpi.nn.init import Normal

_START = Normal(0.02)
_EPS = 1e-12


def vit(
    size: int = 224,
    patch: int = 16,
    outputs: int = 1000,
    *,
    layers: int = 12,
    heads: int = 12,
    width: int = 768,
    dropout: float = 0.0,
) -> Layer:
    """Return ViT-B/16, or another size of it, for square images: their patches are the steps of a sequence.

    Parameters
    ----------
    size : int
        Height and width of images; a multiple of `patch`.
    patch : int
        Of a patch.
    outputs : int
        Classes.
    layers, heads, width : int
    dropout : float
        Of embeddings, attention weights and what is added to the residual stream.
    """
    require_counts(size=size, patch=patch, outputs=outputs, layers=layers, heads=heads, width=width)
    require_heads(width, heads)
    if size % patch:
        raise InputError("images are not made of patches", where="size", found=size, expected=f"a multiple of {patch}")
    steps = 1 + (size // patch) ** 2
    embeddings = {
        "patch_embeddings.projection": Conv2d(width, patch, stride=patch, init=_START),
        "#class": ClassToken(name="cls_token"),
        "#positions": LearnedPositions(steps, name="position_embeddings", leading=True),
        **drop("dropout", dropout),
    }
    blocks = {f"vit.encoder.layer.{i}": _block(heads, width, dropout, last=i + 1 == layers) for i in range(layers)}
    return Sequential(
        **{
            "vit.embeddings": Sequential(**embeddings),
            **blocks,
            "vit.layernorm": LayerNorm(eps=_EPS),
            "classifier": Linear(outputs, init=_START),
        }
    )


def vit_tiny(outputs: int = 1000) -> Layer:
    """Return ViT-Ti/16 for ImageNet (Touvron et al., 2021): twelve layers of 192, with three heads."""
    return vit(224, 16, outputs, layers=12, heads=3, width=192)


def _block(heads: int, width: int, rate: float, *, last: bool) -> Layer:
    """Return a block: attention and a perceptron, each normalised before and added to what came in.

    Behind the attention of the last one nothing but the first step is computed: what tells the class is read there.
    """
    projections = {f"attention.attention.{name}": width for name in ("query", "key", "value")}
    attention = {
        "layernorm_before": LayerNorm(eps=_EPS),
        "#projections": JoinedLinear(projections, init=_START),
        "attention.attention": SelfAttention(heads, dropout=rate),
        **({"#class": FirstStep()} if last else {}),
        "attention.output.dense": Linear(width, init=_START),
        **drop("attention.output.dropout", rate),
    }
    perceptron = {
        "layernorm_after": LayerNorm(eps=_EPS),
        "intermediate.dense": Linear(4 * width, init=_START),
        "intermediate.activation": GELU(),
        "output.dense": Linear(width, init=_START),
        **drop("output.dropout", rate),
    }
    attended = Residual(Sequential(**attention), FirstStep() if last else None, names=("", "#class"))
    return Sequential(**{"#attention": attended, "#perceptron": added(**perceptron)})
