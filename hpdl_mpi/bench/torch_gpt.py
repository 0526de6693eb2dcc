"""GPT-2 in PyTorch: the twin of `hpdl_mpi.models.gpt`."""

from __future__ import annotations

import torch
from torch import nn

from hpdl_mpi.bench.torch_transformer import Block


class GPT(nn.Module):
    """The network; embedding and head are one."""

    def __init__(self, vocabulary: int, context: int, layers: int, heads: int, width: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        blocks = (Block(heads, width, causal=True, gelu="tanh", eps=1e-5) for _ in range(layers))
        self.h = nn.Sequential(*blocks)
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.wte.weight
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits (n, steps, vocabulary)."""
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        return self.lm_head(self.ln_f(self.h(x)))


def gpt2_124m() -> nn.Module:
    """Return the twin of `hpdl_mpi.models.gpt2_124m`."""
    return GPT(50257, 1024, layers=12, heads=12, width=768)


def gpt_small() -> nn.Module:
    """Return the twin of `hpdl_mpi.models.gpt_small`."""
    return GPT(256, 256, layers=6, heads=6, width=384)


def gpt_nano() -> nn.Module:
    """Return the twin of `hpdl_mpi.models.gpt_nano`."""
    return GPT(65, 64, layers=4, heads=4, width=128)
