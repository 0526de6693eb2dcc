"""Vision Transformers in PyTorch: the twin of `hpdl_mpi.models.vit`."""

from __future__ import annotations

import torch
from torch import nn

from hpdl_mpi.bench.torch_transformer import Block

_EPS = 1e-12


class ViT(nn.Module):
    """The network, for square images."""

    def __init__(self, size: int, patch: int, outputs: int, *, layers: int, heads: int, width: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, width, patch, stride=patch)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + (size // patch) ** 2, width))
        blocks = (Block(heads, width, causal=False, gelu="none", eps=_EPS) for _ in range(layers))
        self.blocks = nn.Sequential(*blocks)
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
