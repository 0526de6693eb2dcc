"""GPT-2 in PyTorch: the twin of `hpdl_mpi.models.gpt`, with the attention that PyTorch advises."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class _Attention(nn.Module):
    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size, steps, width = x.shape
        parts = self.c_attn(x).split(width, dim=2)
        q, k, v = (part.view(size, steps, self.heads, -1).transpose(1, 2) for part in parts)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(size, steps, width))


class _Block(nn.Module):
    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = _Attention(heads, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """The network; embedding and head are one."""

    def __init__(self, vocabulary: int, context: int, layers: int, heads: int, width: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.h = nn.ModuleList(_Block(heads, width) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.wte.weight
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits (n, steps, vocabulary)."""
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


def gpt2_124m() -> nn.Module:
    """Return the twin of `hpdl_mpi.models.gpt2_124m`."""
    return GPT(50257, 1024, layers=12, heads=12, width=768)


def gpt_small() -> nn.Module:
    """Return the twin of `hpdl_mpi.models.gpt_small`."""
    return GPT(256, 256, layers=6, heads=6, width=384)


def gpt_nano() -> nn.Module:
    """Return the twin of `hpdl_mpi.models.gpt_nano`."""
    return GPT(65, 64, layers=4, heads=4, width=128)
