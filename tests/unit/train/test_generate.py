"""Text from a trained model, from its tokens to what is shown."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from hpdl_mpi import nn, optim
from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import SingleCommunicator
from hpdl_mpi.data import Batch
from hpdl_mpi.data.text import Tokenizer, tokenizers_json
from hpdl_mpi.data.text.byte_pairs import BytePairs
from hpdl_mpi.data.text.characters import Characters
from hpdl_mpi.data.text.tokenizer import REPLACEMENT
from hpdl_mpi.data.text.words import Words
from hpdl_mpi.models import gpt
from hpdl_mpi.parallel import ProcessGrid, TrainingStep
from hpdl_mpi.train import Parallel, Trainer
from hpdl_mpi.train.generate import TextStream, Wanted, encoded_prompt, generate_text
from hpdl_mpi.train.job import Job
from hpdl_mpi.train.runfolder import RunFolder
from hpdl_mpi.train.vocabulary import pair_tokenizers, require_same_tokens, text_tokenizer

SYMBOLS = "\nabcde"
CONTEXT = 8
ALPHABET = Characters(SYMBOLS)


def _of_blanks() -> BytePairs:
    """Return a tokenizer whose words begin with their blank, but for that of a text's first one."""
    pieces = ["\n", *"abcdefg日é", "\u2581"]
    inner = tokenizers.Tokenizer(tokenizers.models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    inner.decoder = tokenizers.decoders.Metaspace()
    return BytePairs(json.loads(inner.to_str()))


TOKENIZERS: dict[str, Tokenizer] = {
    "characters": Characters("\n abcdefgé日"),
    "words": Words(["\n", "a", "bc", "déf", "g日"], ["unk"]),
    "bpe": BytePairs.learnt(["a déf g日 bc\na déf g日\n"] * 3, 270),
    "blanks that are dropped at the begin": _of_blanks(),
}

texts = st.lists(st.sampled_from(["a", "bc", "déf", "g日", "\n"]), max_size=12).map(" ".join)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=40, deadline=None)
@given(text=texts, size=st.integers(1, 4))
def test_a_stream_shows_the_text_of_all_its_tokens(name: str, text: str, size: int) -> None:
    tokenizer = TOKENIZERS[name]
    ids, stream = tokenizer.encode(text), TextStream(tokenizer)
    pieces = [stream.add(ids[start : start + size]) for start in range(0, len(ids), size)]
    assert "".join([*pieces, stream.end()]) == tokenizer.decode(ids)


def test_a_character_of_several_tokens_is_shown_when_it_is_whole() -> None:
    tokenizer = BytePairs.learnt(["abc"], 256)
    stream = TextStream(tokenizer)
    shown = [stream.add(np.array([token])) for token in tokenizer.encode("a日b")]
    assert shown == ["a", "", "", "日", "b"]
    (first, *_) = tokenizer.encode("日")
    assert stream.add(np.array([first])) == ""
    assert stream.end() == REPLACEMENT


def untrained(model: nn.Layer | None = None, **settings) -> Trainer:
    return Trainer(
        model or gpt(len(SYMBOLS), CONTEXT, layers=1, heads=2, width=16),
        loss=nn.CrossEntropy(),
        optimizer=optim.Adam(0.02),
        parallel=Parallel(threads=1),
        comm=SingleCommunicator(),
        **settings,
    )


def trained(tmp_path, model: nn.Layer | None = None, run_dir=None, **settings) -> Trainer:
    """Return a trainer that has learnt that abcde and the end of the line follow one another."""
    path = tmp_path / "text.h5"
    with h5py.File(path, "w") as file:
        file["tokens"] = ALPHABET.encode("abcde\n" * 60).astype(np.uint8)
    (tmp_path / "tokenizer.json").write_bytes(tokenizers_json({"tokens": ALPHABET}))
    trainer = untrained(model, **settings)
    trainer.fit(path, steps=30, global_batch_size=8, context=CONTEXT, run_dir=run_dir)
    return trainer


def test_test_data_of_other_tokens_are_refused(tmp_path) -> None:
    for name, tokenizer in (("train", ALPHABET), ("same", ALPHABET), ("other", Characters("abcdefg")), ("none", None)):
        (tmp_path / name).mkdir()
        with h5py.File(tmp_path / name / "text.h5", "w") as file:
            file["tokens"] = np.zeros(60, np.uint8)
        if tokenizer:
            (tmp_path / name / "tokenizer.json").write_bytes(tokenizers_json({"tokens": tokenizer}))
    trainer = untrained()
    for name in ("same", "none"):
        require_same_tokens(tmp_path / "train", tmp_path / name)
    settings = {"steps": 1, "global_batch_size": 4, "context": CONTEXT, "validate": tmp_path / "other"}
    with pytest.raises(InputError, match="the test data have other tokens than the training data"):
        trainer.fit(tmp_path / "train", **settings)


def test_a_run_does_not_go_on_with_other_tokens(tmp_path) -> None:
    trained(tmp_path, run_dir=tmp_path / "run")
    kept = (tmp_path / "run/tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(tokenizers_json({"tokens": Characters("\nfghij")}))
    trainer = untrained()
    settings = {"steps": 40, "global_batch_size": 8, "context": CONTEXT, "run_dir": tmp_path / "run"}
    with pytest.raises(InputError, match="the training data have other tokens than the run"):
        trainer.fit(tmp_path / "text.h5", **settings, resume=True)
    assert (tmp_path / "run/tokenizer.json").read_bytes() == kept


def text_of(trainer: Trainer, prompt: str = "", sample: int = 0, **wanted) -> str:
    return "".join(generate_text(trainer, ALPHABET, prompt, Wanted(**wanted), sample=sample))


def test_a_model_writes_what_it_has_learnt_beyond_its_context(tmp_path) -> None:
    trainer = trained(tmp_path)
    assert text_of(trainer, "cd", max_tokens=40, greedy=True) == ("cde\n" + "abcde\n" * 7)[:42]
    assert text_of(trainer, max_tokens=6, greedy=True) == "\nabcde\n"
    assert text_of(trainer, "e", max_tokens=20, beams=3) == "e\nabcde\nabcde\nabcde\na"


def test_a_text_depends_on_its_seed_and_number_alone(tmp_path) -> None:
    trainer = trained(tmp_path)
    wanted = {"max_tokens": 60, "temperature": 3.0, "top_k": 0, "top_p": 1.0}
    drawn = {(seed, sample): text_of(trainer, "a", sample, seed=seed, **wanted) for seed in (0, 1) for sample in (0, 1)}
    assert len(set(drawn.values())) == 4
    assert text_of(trainer, "a", 1, seed=0, **wanted) == drawn[0, 1]


def test_averages_of_weights_write_where_there_are_some(tmp_path) -> None:
    trainer = trained(tmp_path, ema=0.999)  # still nearly what it began with
    average = text_of(trainer, "ab", max_tokens=12, greedy=True)
    trainer.replica.average = None
    assert text_of(trainer, "ab", max_tokens=12, greedy=True) == "abcde\nabcde\nab" != average


def test_a_text_that_is_not_read_to_its_end_leaves_the_weights_to_training(tmp_path) -> None:
    runs = [trained(tmp_path, ema=0.9) for _ in range(2)]
    text = generate_text(runs[0], ALPHABET, "ab", Wanted(max_tokens=20, greedy=True))
    assert [next(text) for _ in range(3)] == ["ab", "c", "d"]
    tokens = np.random.default_rng(0).integers(len(SYMBOLS), size=(8, CONTEXT))
    batch = Batch(tokens, tokens, np.arange(8), global_size=8, offset=0)
    for trainer in runs:
        learn = TrainingStep(trainer.replica, nn.CrossEntropy(), ProcessGrid(SingleCommunicator(), {"pp": 1, "dp": 1}))
        for _ in range(2):
            learn(batch, epoch=0, lr=0.1)
    np.testing.assert_array_equal(runs[0].replica.params, runs[1].replica.params)


def test_outputs_behind_the_vocabulary_are_left_out(tmp_path) -> None:
    trainer = trained(tmp_path, gpt(len(SYMBOLS) + 3, CONTEXT, layers=1, heads=2, width=16))
    trainer.replica.arrays()["transformer.ln_f.bias"][:] = 0
    trainer.replica.arrays()["transformer.wte.weight"][len(SYMBOLS) :] *= 50  # likeliest, or least likely, at times
    text = text_of(trainer, "ab", max_tokens=200, temperature=5.0, top_k=0, top_p=1.0)
    assert len(text) == 202


def test_a_text_ends_where_it_is_told(tmp_path) -> None:
    trainer = trained(tmp_path)
    assert text_of(trainer, "ab", max_tokens=40, greedy=True, end="\n") == "abcde\n"
    assert text_of(trainer, "ab", max_tokens=40, beams=2, end="d") == "abcd"
    with pytest.raises(InputError, match=r"--end: no single token\. Found 2 tokens; expected the text of one"):
        text_of(trainer, "ab", end="ab")
    with pytest.raises(
        InputError, match=r"--end: is not in the vocabulary\. Found 'zebra'; expected the text of a token"
    ):
        "".join(generate_text(trainer, Words(["\n", "a", "b"], ("unk",)), "a", Wanted(end="zebra")))


def test_what_cannot_be_made_is_refused_before_the_prompt_is_shown(tmp_path) -> None:
    both_ways = nn.Sequential(nn.Embedding(len(SYMBOLS), 4), nn.LSTM(4, bidirectional=True), nn.Linear(len(SYMBOLS)))
    trainer = trained(tmp_path, both_ways)
    with pytest.raises(InputError, match="cannot take a sequence in pieces"):
        next(generate_text(trainer, ALPHABET, "ab"))
    with pytest.raises(InputError, match=r"--prompt: is no text of UTF-8"):
        next(generate_text(trainer, ALPHABET, "a\udcff"))


def test_a_stranger_s_tokenizer_is_refused(tmp_path) -> None:
    trainer = trained(tmp_path)
    with pytest.raises(InputError, match=r"none of this model\. Found a vocabulary of 7; expected at most 6"):
        next(generate_text(trainer, Characters(SYMBOLS + "f")))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_p": 2.0}, "top_p"),
        ({"beams": 0}, "beams"),
        ({"beams": 2, "length_penalty": float("nan")}, "length_penalty"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, wanted: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        next(generate_text(trained(tmp_path), ALPHABET, "a", Wanted(**wanted)))  # before anything is shown


def test_a_prompt_begins_as_texts_do() -> None:
    assert encoded_prompt(ALPHABET, "ab").tolist() == [1, 2]
    assert encoded_prompt(ALPHABET, "").tolist() == [0]
    with pytest.raises(InputError, match="--prompt: no text to begin with"):
        encoded_prompt(Characters("abc"), "")
    with pytest.raises(InputError, match=r"--prompt: nothing of it is a token\. Found '   '"):
        encoded_prompt(Words(["a"], ["unk"]), "   ")
    begun = Characters(SYMBOLS, ["pad", "bos", "eos"])
    assert encoded_prompt(begun, "").tolist() == [1]
    assert encoded_prompt(begun, "a").tolist() == [1, 4]
    with pytest.raises(InputError, match=r"--prompt: line 2: a character is not in the vocabulary\. Found 'x'"):
        encoded_prompt(ALPHABET, "ab\nx")


def job(data: dict) -> Job:
    return Job.model_validate(
        {
            "name": "text",
            "model": {"name": "gpt_nano"},
            "data": data,
            "training": {"steps": 1, "global_batch_size": 1, "loss": "cross_entropy"},
            "optimizer": {"name": "sgd", "lr": 0.1},
        }
    )


def test_a_run_keeps_the_tokenizer_of_its_data(tmp_path) -> None:
    run = tmp_path / "run"
    trained(tmp_path, run_dir=run)
    stored = (tmp_path / "tokenizer.json").read_bytes()
    assert RunFolder(run).tokenizers.read_bytes() == stored
    settings = job({"train": str(tmp_path / "text.h5"), "context": CONTEXT})
    (tmp_path / "tokenizer.json").unlink()
    assert text_tokenizer(run, settings).encode("abc").tolist() == [1, 2, 3]
    RunFolder(run).tokenizers.unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json: the run has no tokenizer"):
        text_tokenizer(run, settings)
    (tmp_path / "tokenizer.json").write_bytes(stored)  # a run of before
    assert text_tokenizer(run, settings).encode("abc").tolist() == [1, 2, 3]
    with pytest.raises(InputError, match=r"no tokenizer of this array\. Found tokens; expected others"):
        text_tokenizer(run, job({"train": str(tmp_path / "text.h5"), "context": CONTEXT, "inputs": "others"}))


def test_runs_on_something_else_are_refused(tmp_path) -> None:
    with pytest.raises(InputError, match=r"none of a language model\. Found one on pairs"):
        text_tokenizer(tmp_path, job({"train": "x", "pairs": True}))
    with pytest.raises(InputError, match=r"none of a language model\. Found one on samples that are no text"):
        text_tokenizer(tmp_path, job({"train": "x"}))
    with pytest.raises(InputError, match="none on pairs of text"):
        pair_tokenizers(tmp_path, job({"train": "x", "context": 3}))


def test_pairs_need_tokenizers_that_begin_and_end_texts(tmp_path) -> None:
    settings, both = job({"train": "x", "pairs": True}), Characters("ab", ["pad", "bos", "eos"])
    run = RunFolder(tmp_path)
    run.tokenizers.write_bytes(tokenizers_json({"source": both, "target": both}))
    assert [one.eos for one in pair_tokenizers(tmp_path, settings)] == [2, 2]
    run.tokenizers.write_bytes(tokenizers_json({"source": both}))
    with pytest.raises(InputError, match=r"no tokenizer of this array\. Found source; expected target"):
        pair_tokenizers(tmp_path, settings)
    run.tokenizers.write_bytes(tokenizers_json({"source": both, "target": Characters("ab", ["pad", "eos"])}))
    with pytest.raises(InputError, match="the tokenizer of target has no bos"):
        pair_tokenizers(tmp_path, settings)
