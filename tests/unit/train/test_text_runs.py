"""Runs on text: a model that knows the last token alone learns what follows it."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from hpdl_mpi import nn, optim
from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import SingleCommunicator
from hpdl_mpi.train import Parallel, Trainer
from hpdl_mpi.train.job_data import Data
from hpdl_mpi.train.predict import predict_files
from hpdl_mpi.train.signals import Stopped
from tests.training_cases import StopAfter, metrics_but_times

TOKENS, CONTEXT = 7, 5


@pytest.fixture
def text(tmp_path):
    """Return a file of 302 tokens, each the one before it times 3 plus 1: sixty windows, and what follows the last."""
    tokens = [0]
    while len(tokens) < 302:
        tokens.append((3 * tokens[-1] + 1) % TOKENS)
    with h5py.File(tmp_path / "text.h5", "w") as file:
        file.create_dataset("tokens", data=np.array(tokens, np.uint8), chunks=(32,))
        file["sentences"] = np.array(tokens[:300], np.uint8).reshape(-1, CONTEXT)
    return tmp_path / "text.h5"


def bigrams(loss: nn.Loss | None = None) -> Trainer:
    return Trainer(
        nn.Sequential(nn.Embedding(TOKENS, 8), nn.Linear(TOKENS)),
        loss=loss or nn.CrossEntropy(),
        optimizer=optim.Adam(0.05),
        dtype="float64",
        parallel=Parallel(threads=1),
        comm=SingleCommunicator(),
    )


def fit(trainer: Trainer, text, run_dir=None, **changes):
    settings = {"epochs": 4, "global_batch_size": 8, "validate": text, "context": CONTEXT}
    return trainer.fit(text, run_dir=run_dir, **(settings | changes))


def test_windows_are_learnt_from_and_predicted(text):
    trainer = bigrams()
    summary = fit(trainer, text)
    assert summary["test_accuracy"] == 1.0
    assert trainer.evaluate(text).accuracy == 1.0
    with h5py.File(text) as file:
        tokens = file["tokens"][:]
        outputs = trainer.predict(file["sentences"][:])
    assert outputs.shape == (60, CONTEXT, TOKENS)
    assert np.array_equal(outputs.argmax(axis=2).ravel(), tokens[1:301])
    with pytest.raises(InputError, match=r"the model reads tokens\. Found numbers of type float64; expected integers"):
        trainer.predict(np.zeros((2, CONTEXT)))


def test_windows_may_be_of_one_token(text):
    assert fit(bigrams(), text, context=1)["test_accuracy"] == 1.0


def test_a_table_of_predictions_has_no_room_for_a_class_of_each_token(text, tmp_path):
    trainer, output = bigrams(), tmp_path / "out.csv"
    fit(trainer, text, epochs=1)
    message = r"hpdl predict: the model puts out a class for each token\. Found outputs of shape \(5, 7\); expected "
    with pytest.raises(InputError, match=message + r"one class, .* Write text with hpdl generate, or take") as caught:
        predict_files(trainer, text, "sentences", output, Data(train=str(text), context=CONTEXT))
    assert caught.value.exit_code == 2
    assert not output.exists()


def test_a_run_on_text_goes_on_exactly(text, tmp_path):
    whole = fit(bigrams(), text, tmp_path / "whole")
    with pytest.raises(Stopped):
        fit(bigrams(StopAfter(1 + 11)), text, tmp_path / "stopped")
    resumed = fit(bigrams(), text, tmp_path / "stopped", resume=True)
    assert resumed["parameters_digest"] == whole["parameters_digest"]
    assert metrics_but_times(tmp_path / "stopped") == metrics_but_times(tmp_path / "whole")


def test_a_run_on_text_does_not_go_on_with_other_windows(text, tmp_path):
    with pytest.raises(Stopped):
        fit(bigrams(StopAfter(1 + 3)), text, tmp_path / "run")
    with pytest.raises(InputError, match=r"data\.context: a run cannot change this .*Found 4; expected 5"):
        fit(bigrams(), text, tmp_path / "run", resume=True, context=4)


def test_a_checkpoint_knows_of_what_kind_its_samples_were(text, tmp_path):
    trainer = bigrams()
    fit(trainer, text, tmp_path / "run", epochs=1)
    (checkpoint,) = [path for path in (tmp_path / "run/checkpoints").iterdir() if path.is_dir()]
    loaded = bigrams()
    loaded.load(checkpoint)
    assert loaded.evaluate(text) == trainer.evaluate(text)
