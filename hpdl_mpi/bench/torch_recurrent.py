"""A recurrent language model in PyTorch: the twin of `hpdl_mpi.models.lstm_lm`."""

from __future__ import annotations

import torch
from torch import nn


class LanguageModel(nn.Module):
    """An embedding, a recurrent network over it, and a head."""

    def __init__(self, vocabulary: int, recurrent: nn.RNNBase) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, recurrent.input_size)
        self.recurrent = recurrent
        self.head = nn.Linear(recurrent.hidden_size, vocabulary)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits (n, steps, vocabulary)."""
        return self.head(self.recurrent(self.embedding(tokens))[0])


def lstm_lm() -> nn.Module:
    """Return the twin of `hpdl_mpi.models.lstm_lm`."""
    return LanguageModel(256, nn.LSTM(512, 512, 2, batch_first=True))
