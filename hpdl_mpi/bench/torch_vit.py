"""Vision Transformers in PyTorch: the twin of `hpdl_mpi.models.vit`, with the attention that PyTorch advises."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

_EPS = 1e-12


class _Attention(nn.Module):
    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.dense = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size, steps, width = x.shape
        parts = self.qkv(x).split(width, dim=2)
        q, k, v = (part.view(size, steps, self.heads, -1).transpose(1, 2) for part in parts)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.dense(y.transpose(1, 2).reshape(size, steps, width))


class _Block(nn.Module):
    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(width, eps=_EPS), nn.LayerNorm(width, eps=_EPS)
        self.attention = _Attention(heads, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.before(x))
        return x + self.perceptron(self.after(x))


class ViT(nn.Module):
    """The network, for square images."""

    def __init__(self, size: int, patch: int, outputs: int, *, layers: int, heads: int, width: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, width, patch, stride=patch)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + (size // patch) ** 2, width))
        self.blocks = nn.Sequential(*(_Block(heads, width) for _ in range(layers)))
        self.layernorm = nn.LayerNorm(width, eps=_EPS)
        self.classifier = nn.Linear(width, outputs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (n, outputs) of images (n, 3, size, size)."""
        patches = self.projection(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1) + self.positions
        return self.classifier(self.layernorm(self.blocks(x)[:, 0]))


def vit_tiny() -> nn.Module:
    """Return the twin of `hpdl_mpi.models.vit_tiny`."""
    return ViT(224, 16, 1000, layers=12, heads=3, width=192)
