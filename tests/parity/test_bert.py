"""BERT against that of `transformers`, on texts of several lengths: logits, loss, gradients, and files both ways."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from hpdl_mpi.comm import SingleCommunicator
from hpdl_mpi.models import bert
from hpdl_mpi.nn import CrossEntropy
from hpdl_mpi.optim import SGD
from hpdl_mpi.parallel import ProcessGrid, Replica
from hpdl_mpi.parallel.pipeline import Feed
from hpdl_mpi.train.export import export
from hpdl_mpi.weights import TensorFile, fill
from tests.parity.convert import assert_close

pytestmark = pytest.mark.parity

VOCABULARY, CONTEXT, STEPS = 61, 24, 17
LENGTHS = np.array([17, 9, 1])
BATCH = len(LENGTHS)
IGNORED = -1
SIZES = {"layers": 2, "heads": 4, "width": 32, "hidden": 44}


def theirs() -> BertForMaskedLM:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=SIZES["width"],
        num_hidden_layers=SIZES["layers"],
        num_attention_heads=SIZES["heads"],
        intermediate_size=SIZES["hidden"],
        max_position_embeddings=CONTEXT,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
    )
    module = BertForMaskedLM(config)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # no bias is zero, and padding has a vector
    return module


def ours(dtype: type = np.float32) -> Replica:
    return Replica(bert(VOCABULARY, CONTEXT, **SIZES, dropout=0.0), (STEPS,), SGD(0.1), dtype=dtype, seed=0)


def texts() -> tuple[np.ndarray, np.ndarray]:
    """Return tokens that end in padding, and targets, of which half are to be predicted."""
    rng = np.random.default_rng(0)
    present = np.arange(STEPS) < LENGTHS[:, None]
    tokens = np.where(present, rng.integers(1, VOCABULARY, size=present.shape), 0)
    wanted = present & (rng.random(present.shape) < 0.5)
    return tokens, np.where(wanted, rng.integers(VOCABULARY, size=present.shape), IGNORED)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logits_and_gradients_are_those_of_transformers(tmp_path: Path, dtype: type) -> None:
    module, replica = theirs(), ours(dtype)
    module.save_pretrained(tmp_path)
    fill(TensorFile(tmp_path / "model.safetensors"), replica.model, replica.arrays())
    module.to(torch.float32 if dtype is np.float32 else torch.float64)
    inputs, targets = texts()
    outputs = module(torch.from_numpy(inputs), attention_mask=torch.from_numpy((inputs != 0).astype(np.int64))).logits
    assert_close(replica.predict(inputs, np.arange(BATCH)), outputs)
    classes = torch.from_numpy(targets).flatten()
    loss = torch.nn.functional.cross_entropy(outputs.flatten(0, 1), classes, ignore_index=IGNORED)
    loss.backward()
    count = int((targets != IGNORED).sum())
    sums = replica.learn(Feed(np.arange(BATCH), inputs, targets, scale=1 / count), CrossEntropy(ignore_index=IGNORED))
    assert sums.weight == count
    assert sums.loss / count == pytest.approx(loss.item(), rel=1e-5)
    gradients, named = replica.layout.views(replica.grads), dict(module.named_parameters())
    assert gradients.keys() == named.keys()
    for name, gradient in gradients.items():
        # Keys that all move alike change no weights: the gradient of their bias is zero but for rounding.
        size = float(named[name.replace("key.bias", "query.bias")].grad.abs().max())
        assert_close(gradient, named[name].grad, name, size)


def test_transformers_loads_what_is_exported(tmp_path: Path) -> None:
    replica, inputs = ours(), texts()[0]
    theirs().save_pretrained(tmp_path)  # for its configuration
    grid = ProcessGrid(SingleCommunicator(), {"pp": 1, "dp": 1})
    export(tmp_path / "model.safetensors", replica, grid, averaged=False)
    module = BertForMaskedLM.from_pretrained(tmp_path)
    with torch.no_grad():
        mask = torch.from_numpy((inputs != 0).astype(np.int64))
        outputs = module.eval()(torch.from_numpy(inputs), attention_mask=mask).logits
    assert_close(replica.predict(inputs, np.arange(BATCH)), outputs)
