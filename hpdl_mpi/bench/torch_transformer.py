"""The blocks of the Transformers in PyTorch, with the attention that it advises."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Attention(nn.Module):
    """Self-attention of several heads."""

    def __init__(self, heads: int, width: int, *, causal: bool, bias: bool = True) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.joined = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (n, steps, width) of x, which is such."""
        size, steps, width = x.shape
        parts = self.joined(x).split(width, dim=2)
        q, k, v = (part.view(size, steps, self.heads, -1).transpose(1, 2) for part in parts)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).reshape(size, steps, width))


class Block(nn.Module):
    """Attention and two fully connected layers, each behind a normalisation and beside a shortcut."""

    def __init__(self, heads: int, width: int, *, causal: bool, gelu: str, eps: float, bias: bool = True) -> None:
        super().__init__()
        self.before, self.after = (nn.LayerNorm(width, eps=eps, bias=bias) for _ in range(2))
        self.attention = Attention(heads, width, causal=causal, bias=bias)
        wide, narrow = nn.Linear(width, 4 * width, bias=bias), nn.Linear(4 * width, width, bias=bias)
        self.mlp = nn.Sequential(wide, nn.GELU(gelu), narrow)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (n, steps, width) of x, which is such."""
        x = x + self.attention(self.before(x))
        return x + self.mlp(self.after(x))
