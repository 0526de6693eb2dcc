"""GPT-2 in PyTorch: the twin of `hpdl_mpi.models.gpt`."""

from __future__ import annotations

import torch
from torch import nn

from hpdl_mpi.bench.torch_transformer import Block


class Positions(nn.Embedding):
    """A learned vector for each step."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x (n, steps, width) with the vectors added."""
        return x + self.weight[: x.shape[1]]


class GPT(nn.Sequential):
    """The network, of tokens (n, steps) to logits (n, steps, vocabulary), in the layers that ours is cut between.

    Embedding and head are one.
    """

    def __init__(
        self, vocabulary: int, context: int, layers: int, heads: int, width: int, *, bias: bool = True
    ) -> None:
        embedding, positions = nn.Embedding(vocabulary, width), Positions(context, width)
        blocks = (Block(heads, width, causal=True, gelu="tanh", eps=1e-5, bias=bias) for _ in range(layers))
        head = nn.Linear(width, vocabulary, bias=False)
        super().__init__(embedding, positions, *blocks, nn.LayerNorm(width, bias=bias), head)
        head.weight = embedding.weight
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)


def gpt2_124m() -> nn.Module:
    """Return the twin of `hpdl_mpi.models.gpt2_124m`."""
    return GPT(50257, 1024, layers=12, heads=12, width=768)


def gpt_small() -> nn.Module:
    """Return the twin of `hpdl_mpi.models.gpt_small`."""
    return GPT(256, 256, layers=6, heads=6, width=384)


def gpt_nano() -> nn.Module:
    """Return the twin of `hpdl_mpi.models.gpt_nano`."""
    return GPT(65, 64, layers=4, heads=4, width=128)
