"""The Transformer in PyTorch: the twin of `hpdl_mpi.models.seq2seq`, around ``torch.nn.Transformer``."""

from __future__ import annotations

import math

import torch
from torch import nn

from hpdl_mpi.models.blocks import PADDING


class Seq2Seq(nn.Module):
    """Embeddings, the Transformer, and a head; dropout is 0 as it is here by default."""

    def __init__(
        self,
        source_vocabulary: int,
        target_vocabulary: int,
        *,
        layers: int,
        heads: int,
        width: int,
        hidden: int,
        norm_first: bool = False,
        max_length: int = 256,
    ) -> None:
        super().__init__()
        self.source_embedding = nn.Embedding(source_vocabulary, width)
        self.target_embedding = nn.Embedding(target_vocabulary, width)
        self.transformer = nn.Transformer(
            width, heads, layers, layers, hidden, dropout=0.0, batch_first=True, norm_first=norm_first
        )
        self.head = nn.Linear(width, target_vocabulary, bias=False)
        self.scale = math.sqrt(width)
        for embedding in (self.source_embedding, self.target_embedding):
            nn.init.normal_(embedding.weight, std=1 / self.scale)
        angles = torch.arange(max_length)[:, None] * 10000 ** (-torch.arange(0, width, 2) / width)
        positions = torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)
        self.register_buffer("positions", positions, persistent=False)
        causal = nn.Transformer.generate_square_subsequent_mask(max_length)
        self.register_buffer("causal", causal, persistent=False)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return logits (n, target steps, target_vocabulary)."""
        padding, steps = source == PADDING, target.shape[1]
        decoded = self.transformer(
            self.scale * self.source_embedding(source) + self.positions[: source.shape[1]],
            self.scale * self.target_embedding(target) + self.positions[:steps],
            tgt_mask=self.causal[:steps, :steps],
            tgt_is_causal=True,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
        )
        return self.head(decoded)


def seq2seq() -> nn.Module:
    """Return the twin of `hpdl_mpi.models.seq2seq`."""
    return Seq2Seq(32, 64, layers=3, heads=4, width=256, hidden=1024)
