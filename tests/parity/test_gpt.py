"""GPT-2 against that of `transformers`: logits, loss and every gradient, and files of weights both ways."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hpdl_mpi.comm import SingleCommunicator
from hpdl_mpi.models import gpt
from hpdl_mpi.nn import CrossEntropy
from hpdl_mpi.optim import SGD
from hpdl_mpi.parallel import ProcessGrid, Replica
from hpdl_mpi.parallel.pipeline import Feed
from hpdl_mpi.train.export import export
from hpdl_mpi.weights import TensorFile, fill
from tests.parity.convert import assert_close

pytestmark = pytest.mark.parity

VOCABULARY, CONTEXT, STEPS, BATCH = 61, 24, 17, 3
SIZES = {"layers": 2, "heads": 4, "width": 32}


def theirs() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=CONTEXT,
        n_layer=SIZES["layers"],
        n_head=SIZES["heads"],
        n_embd=SIZES["width"],
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def ours(dtype: type = np.float32) -> Replica:
    return Replica(gpt(VOCABULARY, CONTEXT, **SIZES), (STEPS,), SGD(0.1), dtype=dtype, seed=0)


def tokens() -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and the targets of each of them."""
    drawn = np.random.default_rng(0).integers(VOCABULARY, size=(2, BATCH, STEPS))
    return drawn[0], drawn[1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logits_and_gradients_are_those_of_transformers(tmp_path: Path, dtype: type) -> None:
    module, replica = theirs(), ours(dtype)
    module.save_pretrained(tmp_path)
    fill(TensorFile(tmp_path / "model.safetensors"), replica.model, replica.arrays())
    module.to(torch.float32 if dtype is np.float32 else torch.float64)
    inputs, targets = tokens()
    outputs = module(torch.from_numpy(inputs), labels=None).logits
    assert_close(replica.predict(inputs, np.arange(BATCH)), outputs)
    loss = torch.nn.functional.cross_entropy(outputs.flatten(0, 1), torch.from_numpy(targets).flatten())
    loss.backward()
    feed = Feed(np.arange(BATCH), inputs, targets, scale=1 / (BATCH * STEPS))
    sums = replica.learn(feed, CrossEntropy())
    assert sums.weight == BATCH * STEPS
    assert sums.loss / sums.weight == pytest.approx(loss.item(), rel=1e-5)
    gradients = replica.layout.views(replica.grads)
    named = dict(module.named_parameters())
    assert gradients.keys() == named.keys()
    for name, gradient in gradients.items():
        assert_close(gradient, named[name].grad, name)


def test_transformers_loads_what_is_exported(tmp_path: Path) -> None:
    replica, inputs = ours(), tokens()[0]
    theirs().save_pretrained(tmp_path)  # for its configuration
    grid = ProcessGrid(SingleCommunicator(), {"pp": 1, "dp": 1})
    export(tmp_path / "model.safetensors", replica, grid, averaged=False)
    module = GPT2LMHeadModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert_close(replica.predict(inputs, np.arange(BATCH)), module(torch.from_numpy(inputs)).logits)
