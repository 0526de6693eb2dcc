"""Recurrent language models: an embedding, recurrent layers, and logits of the next token at each step."""

from __future__ import annotations

from hpdl_mpi.models.blocks import drop, require_counts
from hpdl_mpi.nn import LSTM, RNN, Embedding, Layer, Linear, Sequential
from hpdl_mpi.nn.init import FanInUniform, Normal


def rnn_lm(
    vocabulary: int = 256, *, layers: int = 2, hidden: int = 512, dropout: float = 0.0, tied: bool = False
) -> Layer:
    """Return a language model of Elman's networks (Mikolov et al., 2010), for samples of tokens (steps,).

    Parameters
    ----------
    vocabulary : int
    layers, hidden : int
        Recurrent layers, and the width of each and of the embedding.
    dropout : float
        Of the embedding, between the layers, and of the last one's outputs.
    tied : bool
        Whether embedding and head have one weight (Press and Wolf, 2017).
    """
    return _language_model(RNN, vocabulary, layers, hidden, dropout, tied)


def lstm_lm(
    vocabulary: int = 256, *, layers: int = 2, hidden: int = 512, dropout: float = 0.0, tied: bool = False
) -> Layer:
    """Return a language model of long short-term memory (Zaremba et al., 2014); arguments as `rnn_lm` takes them."""
    return _language_model(LSTM, vocabulary, layers, hidden, dropout, tied)


def _language_model(
    kind: type[RNN] | type[LSTM], vocabulary: int, layers: int, hidden: int, dropout: float, tied: bool
) -> Layer:
    require_counts(vocabulary=vocabulary, layers=layers, hidden=hidden)
    start = Normal(hidden**-0.5) if tied else Normal(1.0)  # of the head too, whose logits shall not be large
    model = Sequential(
        embedding=Embedding(vocabulary, hidden, init=start),
        **drop("embedding_dropout", dropout),
        recurrent=kind(hidden, layers, dropout=dropout if layers > 1 else 0.0),
        **drop("output_dropout", dropout),
        head=Linear(vocabulary, init=FanInUniform()),
    )
    return model.tie("head.weight", to="embedding.weight") if tied else model
