"""Runs of BERT on masked tokens: learnt, the same on any ranks, resumed to the bit, evaluated on the same tokens."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest

from hpdl_mpi import nn, optim
from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import Communicator, SingleCommunicator, run_threads
from hpdl_mpi.data import Masking
from hpdl_mpi.models import bert
from hpdl_mpi.train import Parallel, Trainer, open_run, run_job
from hpdl_mpi.train.checkpoint import latest
from hpdl_mpi.train.predict import predict_files
from hpdl_mpi.train.runfolder import RunFolder
from hpdl_mpi.train.signals import Stopped
from hpdl_mpi.train.vocabulary import text_tokenizer
from tests.training_cases import StopAfter, metrics_but_times, read_metrics, step_losses

VOCABULARY, CONTEXT, SPECIALS, WINDOWS = 9, 8, 2, 40
"""Padding is 0, the mask 1."""

MASKING = Masking(mask=1, vocabulary=VOCABULARY, rate=0.3)
SIZES = {"vocabulary": VOCABULARY, "context": CONTEXT, "layers": 1, "heads": 2, "width": 16}
JOB = """
name = "masked"
[model]
name = "bert"
vocabulary = 9
context = 8
layers = 1
heads = 2
width = 16
dropout = 0.0
[data]
train = "{data}"
test = "{data}"
context = 8
[data.masking]
mask = 1
vocabulary = 9
rate = 0.3
[training]
epochs = 20
global_batch_size = 8
dtype = "float64"
loss = {{ name = "cross_entropy", ignore_index = -1 }}
[optimizer]
name = "adamw"
lr = 0.01
[parallel]
threads = 1
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Return a file of 40 windows, each of one token that is repeated, so that the others tell a hidden one."""
    path = tmp_path_factory.mktemp("text") / "text.h5"
    words = np.random.default_rng(0).integers(SPECIALS, VOCABULARY, WINDOWS + 1).astype(np.uint8)
    tokens = np.repeat(words, CONTEXT)
    with h5py.File(path, "w") as file:
        file.create_dataset("tokens", data=tokens[: WINDOWS * CONTEXT + 1], chunks=(32,))
        file["windows"] = tokens[: WINDOWS * CONTEXT].reshape(WINDOWS, CONTEXT)
    return path


@pytest.fixture(scope="module")
def job(text, tmp_path_factory):
    path = tmp_path_factory.mktemp("job") / "job.toml"
    path.write_text(JOB.format(data=text))
    return path


@pytest.fixture(scope="module")
def whole(job, tmp_path_factory):
    """A run of the job on one rank: its folder and its summary."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run_job(job, SingleCommunicator(), run_dir=folder)


def masked_bert(loss: nn.Loss | None = None) -> Trainer:
    return Trainer(
        bert(**SIZES),
        loss=loss or nn.CrossEntropy(ignore_index=-1),
        optimizer=optim.Adam(0.02),
        dtype="float64",
        parallel=Parallel(threads=1),
        comm=SingleCommunicator(),
    )


def loaded(run) -> Trainer:
    """Return a trainer that holds the model of a run of the job."""
    trainer = masked_bert()
    trainer.load(latest(run / "checkpoints"))
    return trainer


def fit(trainer: Trainer, text, run_dir=None, **changes):
    settings = {"epochs": 2, "global_batch_size": 8, "validate": text, "context": CONTEXT, "masking": MASKING}
    return trainer.fit(text, run_dir=run_dir, **(settings | changes))


def test_a_tiny_bert_learns_what_is_hidden(whole):
    """It begins near a guess among the seven ordinary tokens, ln 7 = 1.95, and ends where others tell nearly all."""
    losses = [line["loss"] for line in read_metrics(whole[0], "test")]
    assert losses[0] > 1.8
    assert losses[-1] < 0.6
    assert whole[1]["test_accuracy"] > 0.8


@pytest.mark.parametrize("parallel", ["parallel.dp=2", "parallel.pp=2", "parallel.num_microbatches=2"])
def test_two_ranks_take_the_steps_of_one(job, tmp_path, whole, parallel):
    def run(comm: Communicator) -> dict:
        return run_job(job, comm, run_dir=tmp_path / "run", overrides=[parallel, "training.epochs=3"])

    summary = run_threads(2, run)[0]
    np.testing.assert_allclose(step_losses(tmp_path / "run"), step_losses(whole[0])[: summary["steps"]], rtol=1e-9)
    assert summary["test_loss"] == pytest.approx(read_metrics(whole[0], "test")[2]["loss"], rel=1e-9)


def test_a_run_that_is_opened_again_is_evaluated_on_the_same_tokens(text, whole):
    trainer = loaded(whole[0])
    found = trainer.evaluate(text)
    assert found.loss == pytest.approx(whole[1]["test_loss"], rel=1e-12)
    assert trainer.evaluate(text, batch_size=7).loss == pytest.approx(found.loss, rel=1e-12)

    def evaluate(comm: Communicator) -> float:
        return open_run(whole[0], comm)[0].evaluate(text).loss

    assert run_threads(2, evaluate) == pytest.approx([found.loss] * 2, rel=1e-12)


def test_an_evaluation_needs_a_hidden_token(text, whole):
    trainer = masked_bert()
    seldom = replace(MASKING, rate=1e-6)
    with pytest.raises(InputError, match=r"no target of these data counts.*data\.masking\.rate"):
        fit(trainer, text, masking=seldom)


def test_hidden_tokens_are_filled_in(text, whole):
    trainer = loaded(whole[0])
    with h5py.File(text) as file:
        tokens = file["windows"][:].astype(np.int64)
    hidden = tokens.copy()
    hidden[:, 4] = MASKING.mask
    assert np.mean(trainer.predict(hidden)[:, 4].argmax(axis=1) == tokens[:, 4]) > 0.8


def test_a_masked_run_goes_on_exactly(text, tmp_path):
    whole = fit(masked_bert(), text, tmp_path / "whole")
    with pytest.raises(Stopped):
        fit(masked_bert(StopAfterIgnoring(1 + 7)), text, tmp_path / "stopped")
    resumed = fit(masked_bert(), text, tmp_path / "stopped", resume=True)
    assert resumed["parameters_digest"] == whole["parameters_digest"]
    assert metrics_but_times(tmp_path / "stopped") == metrics_but_times(tmp_path / "whole")


class StopAfterIgnoring(StopAfter):
    """The same for a loss of masked tokens."""

    def __init__(self, calls):
        super().__init__(calls)
        self.ignore_index = -1


def test_a_run_does_not_go_on_with_another_mask(text, tmp_path):
    with pytest.raises(Stopped):
        fit(masked_bert(StopAfterIgnoring(1 + 3)), text, tmp_path / "run")
    for masking in (None, Masking(mask=1, vocabulary=VOCABULARY, rate=0.2)):
        with pytest.raises(InputError, match=r"data\.masking: a run cannot change this .*xpected Masking\(mask=1"):
            fit(masked_bert(), text, tmp_path / "run", resume=True, masking=masking)
    same = Masking(mask=1, vocabulary=VOCABULARY, specials=SPECIALS, rate=0.3)
    assert fit(masked_bert(), text, tmp_path / "run", resume=True, masking=same)["epochs"] == 2


@pytest.mark.parametrize(
    ("loss", "changes", "message"),
    [
        (
            nn.CrossEntropy(),
            {},
            r"training\.loss\.ignore_index: data\.masking leaves most tokens without a target\. "
            r'Expected -1\. Write loss = \{ name = "cross_entropy", ignore_index = -1 \}',
        ),
        (nn.CrossEntropy(ignore_index=0), {}, r"training\.loss\.ignore_index: .*Found 0; expected -1"),
        (
            None,
            {"masking": Masking(mask=1, vocabulary=10)},
            r"data\.masking\.vocabulary: the model has too few outputs\. Found 10; expected at most 9, the classes",
        ),
        (None, {"masking": {"mask": 1}}, r"fit: masking: of another kind"),
        (None, {"context": None}, r"fit: masking: .*expected none without context"),
    ],
    ids=["no ignored target", "another one", "outputs", "kind", "context"],
)
def test_what_does_not_go_together_is_refused(text, loss, changes, message):
    with pytest.raises(InputError, match=message):
        fit(masked_bert(loss), text, **changes)


def test_a_table_of_predictions_has_no_room_for_a_class_of_each_token(text, tmp_path, whole):
    message = (
        r"hpdl predict: the model puts out a class for each token\. Found outputs of shape \(8, 9\); expected one "
        r"class, or values, for each sample\. Take all outputs from Trainer\.predict in Python"
    )
    with pytest.raises(InputError, match=message) as caught:
        predict_files(loaded(whole[0]), text, "windows", tmp_path / "out.csv", RunFolder(whole[0]).read_job().data)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out.csv").exists()


def test_a_model_of_hidden_tokens_writes_no_text(whole):
    with pytest.raises(InputError, match=r"none of a language model\. Found one that predicts hidden tokens"):
        text_tokenizer(whole[0], RunFolder(whole[0]).read_job())
