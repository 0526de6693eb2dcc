"""The vision Transformer against that of `transformers`: logits and every gradient, and files of weights both ways."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from hpdl_mpi.comm import SingleCommunicator
from hpdl_mpi.models import vit
from hpdl_mpi.nn import CrossEntropy
from hpdl_mpi.optim import SGD
from hpdl_mpi.parallel import ProcessGrid, Replica
from hpdl_mpi.parallel.pipeline import Feed
from hpdl_mpi.train.export import export
from hpdl_mpi.weights import TensorFile, fill, tensors
from tests.parity.convert import assert_close, to_torch

pytestmark = pytest.mark.parity

SIZE, PATCH, CLASSES, BATCH = 24, 8, 5, 3
SIZES = {"layers": 2, "heads": 4, "width": 32}

INSIDE = {
    r"vit\.encoder\.layer\.": "vit.layers.",
    r"attention\.attention\.(query|key|value)": lambda found: f"attention.{found[1][0]}_proj",
    r"attention\.output\.dense": "attention.o_proj",
    r"intermediate\.dense": "mlp.fc1",
    r"output\.dense": "mlp.fc2",
}
"""What in their files has other names than in their modules."""


def theirs() -> ViTForImageClassification:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=SIZES["width"],
        num_hidden_layers=SIZES["layers"],
        num_attention_heads=SIZES["heads"],
        intermediate_size=4 * SIZES["width"],
        image_size=SIZE,
        patch_size=PATCH,
        num_labels=CLASSES,
        initializer_range=0.2,
    )
    module = ViTForImageClassification(config)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # no class token and no bias is zero
    return module.eval()


def ours(dtype: type = np.float32) -> Replica:
    model = vit(SIZE, PATCH, CLASSES, **SIZES)
    return Replica(model, (SIZE, SIZE, 3), SGD(0.1), dtype=dtype, seed=0)


def images(dtype: type) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(BATCH, SIZE, SIZE, 3)).astype(dtype)


def inside(name: str) -> str:
    """Return the name in their module of what has this one in a file."""
    for pattern, replacement in INSIDE.items():
        name = re.sub(pattern, replacement, name)
    return name


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logits_and_gradients_are_those_of_transformers(tmp_path: Path, dtype: type) -> None:
    module, replica = theirs(), ours(dtype)
    module.save_pretrained(tmp_path)
    fill(TensorFile(tmp_path / "model.safetensors"), replica.model, replica.arrays())
    module.to(torch.float32 if dtype is np.float32 else torch.float64)
    inputs, targets = images(dtype), np.arange(BATCH)
    outputs = module(to_torch(inputs)).logits
    assert_close(replica.predict(inputs, np.arange(BATCH)), outputs)
    torch.nn.functional.cross_entropy(outputs, torch.from_numpy(targets)).backward()
    replica.learn(Feed(np.arange(BATCH), inputs, targets, scale=1 / BATCH), CrossEntropy())
    gradients, named = replica.layout.views(replica.grads), dict(module.named_parameters())
    assert {inside(name) for name in gradients} == named.keys()
    for name, tensor in tensors(replica.model).items():
        # Keys that all move alike change no weights: the gradient of their bias is zero but for rounding.
        size = float(named[inside(name.replace("key.bias", "query.bias"))].grad.abs().max())
        assert_close(tensor.outward(gradients[name]), named[inside(name)].grad.numpy(), name, size)


def test_transformers_loads_what_is_exported(tmp_path: Path) -> None:
    replica, inputs = ours(), images(np.float32)
    theirs().save_pretrained(tmp_path)  # for its configuration
    grid = ProcessGrid(SingleCommunicator(), {"pp": 1, "dp": 1})
    export(tmp_path / "model.safetensors", replica, grid, averaged=False)
    module = ViTForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert_close(replica.predict(inputs, np.arange(BATCH)), module(to_torch(inputs)).logits)
