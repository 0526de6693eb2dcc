"""LLaMA against that of `transformers`: logits, loss and every gradient, and files of weights both ways.

`transformers` normalises and turns in float32, whatever the weights are, so double precision would show no more.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hpdl_mpi.comm import SingleCommunicator
from hpdl_mpi.models import llama
from hpdl_mpi.nn import CrossEntropy
from hpdl_mpi.optim import SGD
from hpdl_mpi.parallel import ProcessGrid, Replica
from hpdl_mpi.parallel.pipeline import Feed
from hpdl_mpi.train.export import export
from hpdl_mpi.weights import TensorFile, fill
from tests.parity.convert import assert_close

VOCABULARY, STEPS, BATCH = 61, 17, 3
SIZES = {"layers": 2, "heads": 4, "width": 32, "hidden": 44}
FORMS = {
    "heads of their own": {"kv_heads": 4},
    "shared keys": {"kv_heads": 2},
    "one for all, tied": {"kv_heads": 1, "tied": True},
    "a longer wave": {"kv_heads": 2, "base": 500000.0, "eps": 1e-5},
}

pytestmark = [pytest.mark.parity, pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)]


def theirs(form: dict) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=SIZES["width"],
        intermediate_size=SIZES["hidden"],
        num_hidden_layers=SIZES["layers"],
        num_attention_heads=SIZES["heads"],
        num_key_value_heads=form["kv_heads"],
        rms_norm_eps=form.get("eps", 1e-6),
        rope_parameters={"rope_type": "default", "rope_theta": form.get("base", 10000.0)},
        tie_word_embeddings=form.get("tied", False),
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config)


def ours(form: dict) -> Replica:
    return Replica(llama(VOCABULARY, **SIZES, **form), (STEPS,), SGD(0.1), dtype=np.float32, seed=0)


def tokens() -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and the targets of each of them."""
    drawn = np.random.default_rng(0).integers(VOCABULARY, size=(2, BATCH, STEPS))
    return drawn[0], drawn[1]


def test_logits_and_gradients_are_those_of_transformers(tmp_path: Path, form: dict) -> None:
    module, replica = theirs(form), ours(form)
    module.save_pretrained(tmp_path)
    fill(TensorFile(tmp_path / "model.safetensors"), replica.model, replica.arrays())
    inputs, targets = tokens()
    outputs = module(torch.from_numpy(inputs)).logits
    assert_close(replica.predict(inputs, np.arange(BATCH)), outputs)
    loss = torch.nn.functional.cross_entropy(outputs.flatten(0, 1), torch.from_numpy(targets).flatten())
    loss.backward()
    sums = replica.learn(Feed(np.arange(BATCH), inputs, targets, scale=1 / targets.size), CrossEntropy())
    assert sums.loss / sums.weight == pytest.approx(loss.item(), rel=1e-5)
    gradients, named = replica.layout.views(replica.grads), dict(module.named_parameters())
    assert gradients.keys() == named.keys()
    for name, gradient in gradients.items():
        assert_close(gradient, named[name].grad, name)


def test_transformers_loads_what_is_exported(tmp_path: Path, form: dict) -> None:
    replica, inputs = ours(form), tokens()[0]
    theirs(form).save_pretrained(tmp_path)  # for its configuration
    grid = ProcessGrid(SingleCommunicator(), {"pp": 1, "dp": 1})
    export(tmp_path / "model.safetensors", replica, grid, averaged=False)
    module = LlamaForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert_close(replica.predict(inputs, np.arange(BATCH)), module(torch.from_numpy(inputs)).logits)
