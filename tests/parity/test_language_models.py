"""Recurrent language models against PyTorch's: logits, loss and every gradient."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn as tnn

from hpdl_mpi.bench.torch_recurrent import LanguageModel
from hpdl_mpi.models import lstm_lm, rnn_lm
from hpdl_mpi.nn import CrossEntropy, Layer
from hpdl_mpi.optim import SGD
from hpdl_mpi.parallel import Replica
from hpdl_mpi.parallel.pipeline import Feed
from tests.parity.convert import assert_close, assert_layers_close, load

pytestmark = pytest.mark.parity

VOCABULARY, STEPS, BATCH = 13, 9, 3
LAYERS, HIDDEN = 2, 24


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("ours", "theirs"), [(rnn_lm, tnn.RNN), (lstm_lm, tnn.LSTM)], ids=["rnn_lm", "lstm_lm"])
def test_logits_and_gradients_are_those_of_pytorch(
    ours: Callable[..., Layer], theirs: Callable[..., tnn.RNNBase], dtype: type, tied: bool
) -> None:
    model = ours(VOCABULARY, layers=LAYERS, hidden=HIDDEN, tied=tied)
    replica = Replica(model, (STEPS,), SGD(0.1), dtype=dtype, seed=0)
    module = LanguageModel(VOCABULARY, theirs(HIDDEN, HIDDEN, LAYERS, batch_first=True))
    module.to(torch.float32 if dtype is np.float32 else torch.float64)
    values = replica.layout.views(replica.params)
    if tied:
        module.head.weight = module.embedding.weight
        values |= {"head.weight": values["embedding.weight"]}
    load(module, values)

    inputs, targets = np.random.default_rng(0).integers(VOCABULARY, size=(2, BATCH, STEPS))
    outputs = module(torch.from_numpy(inputs))
    assert_close(replica.predict(inputs, np.arange(BATCH)), outputs)
    loss = torch.nn.functional.cross_entropy(outputs.flatten(0, 1), torch.from_numpy(targets).flatten())
    loss.backward()
    sums = replica.learn(Feed(np.arange(BATCH), inputs, targets, scale=1 / targets.size), CrossEntropy())
    assert sums.loss / sums.weight == pytest.approx(loss.item(), rel=1e-5)
    gradients = replica.layout.views(replica.grads)
    assert_layers_close(gradients, {name: parameter.grad for name, parameter in module.named_parameters()})
