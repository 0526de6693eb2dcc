"""The Transformer against ``torch.nn.Transformer``: logits, loss and every gradient, of texts of several lengths."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpdl_mpi.bench.torch_seq2seq import Seq2Seq
from hpdl_mpi.models import seq2seq
from hpdl_mpi.nn import CrossEntropy
from hpdl_mpi.nn.embedding import sinusoids
from hpdl_mpi.optim import SGD
from hpdl_mpi.parallel import Replica
from hpdl_mpi.parallel.pipeline import Feed
from tests.parity.convert import assert_close, assert_layers_close, load

pytestmark = pytest.mark.parity

SOURCE, TARGET, BATCH = 19, 23, 3
VOCABULARIES = 11, 13
LENGTHS = np.array([[19, 12, 3], [23, 7, 1]])
"""Of the sources and of the targets."""

IGNORED = -1


def batch() -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Return tokens with padding, and the targets of each of the second text."""
    rng = np.random.default_rng(0)
    source, target = (
        np.where(np.arange(steps) < lengths[:, None], rng.integers(1, vocabulary, size=(BATCH, steps)), 0)
        for vocabulary, steps, lengths in zip(VOCABULARIES, (SOURCE, TARGET), LENGTHS, strict=True)
    )
    targets = rng.integers(VOCABULARIES[1], size=(BATCH, TARGET))
    return (source, target), np.where(target > 0, targets, IGNORED)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")  # so it says where layers normalise first
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logits_and_gradients_are_those_of_pytorch(dtype: type, norm_first: bool, tied: bool) -> None:
    sizes = {"layers": 2, "heads": 4, "width": 32, "hidden": 48, "norm_first": norm_first}
    model = seq2seq(*VOCABULARIES, **sizes, tied=tied)
    replica = Replica(model, ((SOURCE,), (TARGET,)), SGD(0.1), dtype=dtype, seed=0)
    rng = np.random.default_rng(1)
    values = replica.layout.views(replica.params)
    for array in values.values():
        array += rng.normal(scale=0.1, size=array.shape)  # no bias is zero
    module = Seq2Seq(*VOCABULARIES, **sizes).to(torch.float32 if dtype is np.float32 else torch.float64)
    module.positions.copy_(torch.from_numpy(sinusoids(*module.positions.shape)))  # it has computed them in float32
    if tied:
        module.head.weight = module.target_embedding.weight
        values |= {"head.weight": values["target_embedding.weight"]}
    load(module, {named(name): array for name, array in values.items()})

    inputs, targets = batch()
    outputs = module(*map(torch.from_numpy, inputs))
    assert_close(replica.predict(inputs, np.arange(BATCH)), outputs)
    classes = torch.from_numpy(targets).flatten()
    loss = torch.nn.functional.cross_entropy(outputs.flatten(0, 1), classes, ignore_index=IGNORED)
    loss.backward()
    count = int((targets != IGNORED).sum())
    sums = replica.learn(Feed(np.arange(BATCH), inputs, targets, scale=1 / count), CrossEntropy(ignore_index=IGNORED))
    assert sums.weight == count
    assert sums.loss / count == pytest.approx(loss.item(), rel=1e-5)
    gradients = {named(name): array for name, array in replica.layout.views(replica.grads).items()}
    assert_layers_close(gradients, {name: parameter.grad for name, parameter in module.named_parameters()})


def named(name: str) -> str:
    """Return a parameter's name in `Seq2Seq`, where the Transformer is one module of several."""
    return f"transformer.{name}" if name.startswith(("encoder.", "decoder.")) else name
