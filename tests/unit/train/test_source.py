"""Where samples come from: what does not fit them is named by its key."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest

from hpdl_mpi import nn
from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data import Augment, Masking, Pairs, Transform, Windows
from hpdl_mpi.train import Source
from tests.training_cases import write_table


@pytest.mark.parametrize(
    ("transforms", "key"),
    [
        ({"transform": Transform(mean=[0.0, 0.0])}, "data.transform.mean"),
        ({"transform": Transform(layout="chw")}, "data.transform.layout"),
        ({"target_transform": Transform(std=[1.0, 1.0])}, "data.target_transform.std"),
    ],
)
def test_a_transform_that_does_not_fit_the_samples_is_named_by_its_key(tmp_path, transforms, key):
    source = Source(write_table(tmp_path / "table.h5"), **transforms)
    with pytest.raises(InputError, match=f"^{key}: "):
        source.check(nn.Linear(1), nn.MeanSquaredError(), 1)


class Reader(nn.Layer):
    """Stands for a model that reads tokens and gives 7 numbers for each."""

    reads_tokens = True

    def build(self, input_shape):
        self.built = input_shape

    def output_shape(self, input_shape):
        last = input_shape[-1] if isinstance(input_shape[-1], tuple) else input_shape
        return (*last, 7)

    def forward(self, x, ctx):
        raise NotImplementedError

    def backward_input(self, dy, ctx):
        raise NotImplementedError


@pytest.fixture
def text(tmp_path):
    """Return a file with running text, sentences with a class each and one for each token, and pairs."""
    with h5py.File(tmp_path / "text.h5", "w") as file:
        file["tokens"] = np.arange(50, dtype=np.uint8)
        file["x"] = np.zeros((4, 6), np.uint8)
        file["y"] = np.zeros(4, np.uint8)
        file["z"] = np.zeros((4, 6), np.uint8)
        file["source"], file["target"] = np.ones((4, 9), np.uint8), np.ones((4, 5), np.uint8)
        file["source_length"], file["target_length"] = np.full(4, 6), np.array([5, 4, 3, 2])
    return tmp_path / "text.h5"


def test_a_model_of_tokens_is_built_for_windows(text):
    model, source = Reader(), Source(text, "tokens", "tokens", context=8)
    with source.open() as windows:
        assert isinstance(windows, Windows)
    assert source.check(model, nn.CrossEntropy(), 2) == model.built == (8,)
    assert source.build(Reader(), nn.CrossEntropy(), (8,)) == (8,)
    assert source.at(text).check(model, nn.CrossEntropy(), 1, (8,)) == (8,)
    with pytest.raises(InputError, match=r"fewer samples than ranks .*6 samples"):
        source.check(Reader(), nn.CrossEntropy(), 7)


def test_masked_tokens_need_a_loss_that_passes_over_the_others_and_outputs_for_all(text):
    loss, source = nn.CrossEntropy(ignore_index=-1), Source(text, "tokens", "tokens", context=8)
    masked = replace(source, masking=Masking(mask=1, vocabulary=7))
    assert masked.check(Reader(), loss, 1) == masked.build(Reader(), loss, (8,)) == (8,)
    for work in (lambda *what: masked.check(*what, 1), lambda *what: masked.build(*what, (8,))):
        with pytest.raises(InputError, match=r"training\.loss\.ignore_index: data\.masking leaves most tokens without"):
            work(Reader(), nn.CrossEntropy())
    with pytest.raises(InputError, match=r"data\.masking\.vocabulary: .*Found 8; expected at most 7"):
        replace(source, masking=Masking(mask=1, vocabulary=8)).check(Reader(), loss, 1)


def test_a_model_of_tokens_is_built_for_the_longest_pair(text):
    loss = nn.CrossEntropy(ignore_index=-1)
    model, source = Reader(), Source(text, "source", "target", pairs=True, bucket=True)
    with source.open() as pairs:
        assert isinstance(pairs, Pairs)
    assert source.check(model, loss, 1) == model.built == ((8,), (4,))
    other = source.at(text).check(model, loss, 1, ((20,), (20,)))  # test data of other lengths
    assert other == ((8,), (4,))
    with pytest.raises(InputError, match=r"data\.pairs: pairs have no one shape"):
        source.build(Reader(), loss, (8,))
    with pytest.raises(InputError, match=r"^training\.loss\.ignore_index: .*Expected -1\. Write loss = "):
        source.check(Reader(), nn.CrossEntropy(), 1)


def test_tokens_may_have_targets_of_their_own(text):
    assert Source(text, "x", "z").check(Reader(), nn.CrossEntropy(), 1) == (6,)
    with pytest.raises(InputError, match=r"targets do not fit the model's outputs\. Found \(\); expected \(6,\)"):
        Source(text, "x", "y").check(Reader(), nn.CrossEntropy(), 1)


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (Reader(), {"transform": Transform(scale=0.5)}, r"^data\.transform: tokens are not transformed"),
        (Reader(), {"augment": Augment(mixup=0.2)}, r"^data\.augment: tokens are not augmented"),
        (Reader(), {"target_transform": Transform(scale=0.5)}, r"^data\.target_transform: class numbers are not"),
        (nn.Linear(7), {"context": 8}, r"^data\.context: the model reads no tokens"),
        (nn.Linear(7), {"pairs": True}, r"^data\.pairs: the model reads no tokens"),
    ],
)
def test_what_does_not_suit_tokens_is_named_by_its_key(text, model, changes, message):
    source = Source(text, **({"inputs": "tokens", "context": 8} | changes if "pairs" not in changes else changes))
    with pytest.raises(InputError, match=message):
        source.check(model, nn.CrossEntropy(), 1)
    with pytest.raises(InputError, match=message if "pairs" not in changes else "one shape"):
        source.build(model, nn.CrossEntropy(), (8,))
