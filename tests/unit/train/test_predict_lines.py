"""What an encoder-decoder makes of lines of text."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data.text.characters import Characters
from hpdl_mpi.models import gpt, seq2seq
from hpdl_mpi.nn.encoder_decoder import decoder_of, encode, halves
from hpdl_mpi.nn.search import beam_search
from hpdl_mpi.optim import SGD
from hpdl_mpi.parallel import Replica
from hpdl_mpi.train.predict_lines import check_lines_output, predict_lines, translations

SPECIALS = ["pad", "bos", "eos"]
SOURCE, TARGET = Characters("abcd", SPECIALS), Characters("uvwxyz", SPECIALS)
STEPS = (8,), (10,)
SEED = 19
"""Of a model that writes different things, some to their end."""


@pytest.fixture
def replica() -> Replica:
    model = seq2seq(7, 9, layers=2, heads=2, width=16, hidden=24)
    made = Replica(model, STEPS, SGD(0.1), dtype="float64", seed=0)  # type: ignore[arg-type]
    rng = np.random.default_rng(SEED)
    for name, values in made.layout.views(made.params).items():
        if "norm" not in name:
            values[:] = rng.normal(scale=0.6, size=values.shape)
    return made


def naive(replica: Replica, source: np.ndarray) -> list[int]:
    """Return the greedy target of a source, from whole passes of the whole model over padded arrays."""
    padded, target = np.zeros((1, STEPS[0][0]), np.int64), [TARGET.bos]
    padded[0, : len(source)] = source
    while len(target) <= STEPS[1][0]:
        written = np.zeros((1, STEPS[1][0]), np.int64)
        written[0, : len(target)] = target
        logits = replica.predict((padded, written), np.arange(1))[0, len(target) - 1]
        target.append(int(logits.argmax()))
        if target[-1] == TARGET.eos:
            break
    return [token for token in target[1:] if token != TARGET.eos]


def sources() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.array([*rng.integers(3, 7, size=size), SOURCE.eos]) for size in (3, 1, 7, 4, 2, 7, 1, 5)]


def test_targets_are_those_of_the_whole_model(replica: Replica) -> None:
    expected = [naive(replica, source) for source in sources()]
    assert len({tuple(tokens) for tokens in expected}) > 1
    parts = halves(replica.model, STEPS)
    found = translations(parts, sources(), TARGET, beams=None, length_penalty=0.6)
    assert [tokens.tolist() for tokens in found] == expected
    greedy = translations(parts, sources(), TARGET, beams=1, length_penalty=0.0)
    assert [tokens.tolist() for tokens in greedy] == expected


def test_the_model_is_as_before_when_it_was_cut(replica: Replica) -> None:
    tokens = np.ones((1, *STEPS[0]), np.int64), np.ones((1, *STEPS[1]), np.int64)
    before = replica.predict(tokens, np.arange(1))
    halves(replica.model, STEPS)
    np.testing.assert_array_equal(replica.predict(tokens, np.arange(1)), before)


def test_beams_of_a_target_share_the_memory_of_its_source(replica: Replica) -> None:
    parts, source = halves(replica.model, STEPS), sources()[0][None]
    for beam in beam_search(decoder_of(parts, source, 10), np.array([1]), beams=3, max_tokens=6, length_penalty=0.0):
        step, score, piece = decoder_of(parts, source, 10), 0.0, np.array([[1]])
        for token in beam.tokens:
            logits = step(piece)[0]
            score += logits[token] - np.log(np.exp(logits).sum())
            piece = np.array([[token]])
        assert beam.score == pytest.approx(score, abs=1e-10)


def test_padding_of_sources_changes_nothing(replica: Replica) -> None:
    parts, source = halves(replica.model, STEPS), sources()[0]
    padded = np.zeros((1, 8), np.int64)
    padded[0, : len(source)] = source
    memory, mask = encode(parts.encoder, padded)
    assert mask[0].tolist() == [1.0] * len(source) + [0.0] * (8 - len(source))
    np.testing.assert_allclose(memory[0, : len(source)], encode(parts.encoder, source[None])[0][0], atol=1e-12)


def trainer(replica: Replica) -> SimpleNamespace:
    return SimpleNamespace(model=replica.model, replica=replica)


def test_lines_become_lines(replica: Replica, tmp_path: Path) -> None:
    (tmp_path / "in.tsv").write_text("abc\tuv\nd\r\nabcdabc\tx\ty\n")
    done = predict_lines(trainer(replica), SOURCE, TARGET, tmp_path / "in.tsv", tmp_path / "out.tsv")
    written = [line.split("\t") for line in (tmp_path / "out.tsv").read_text().splitlines()]
    assert done == (3, 0, None)
    assert [source for source, _ in written] == ["abc", "d", "abcdabc"]
    for source, target in written:
        assert TARGET.decode(naive(replica, np.array([*SOURCE.encode(source), SOURCE.eos]))) == target


def test_lines_with_unknown_characters_are_counted(replica: Replica, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("abc\nxab\nba\nx\n")
    source = Characters("abc", ["pad", "bos", "eos", "unk"])
    assert predict_lines(trainer(replica), source, TARGET, tmp_path / "in.txt", tmp_path / "out.tsv") == (4, 2, 2)


def test_what_would_break_the_table_is_escaped(replica: Replica, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("abcdabc\n")
    odd = Characters("\t\n\ruvw", SPECIALS)
    replica.arrays()["head.weight"][3:6] *= 20  # likeliest at times
    predict_lines(trainer(replica), SOURCE, odd, tmp_path / "in.txt", tmp_path / "out.tsv")
    (line,) = (tmp_path / "out.tsv").read_bytes().splitlines()
    source, answer = line.split(b"\t")
    assert source == b"abcdabc"
    assert b"\\" in answer


def test_outputs_behind_the_vocabulary_of_targets_are_left_out(replica: Replica) -> None:
    parts = halves(replica.model, STEPS)
    replica.arrays()["head.weight"][-1] *= 20
    fewer = Characters("uvwxy", SPECIALS)
    for tokens in translations(parts, sources(), fewer, beams=None, length_penalty=0.6):
        assert (tokens < fewer.vocabulary_size).all()


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (Characters("abcdef", SPECIALS), TARGET, "a vocabulary of 9; expected at most 7, the model's embeddings"),
        (SOURCE, Characters("tuvwxyz", SPECIALS), "a vocabulary of 10; expected at most 9, the model's outputs"),
    ],
)
def test_tokenizers_of_another_model_are_refused(
    replica: Replica, tmp_path: Path, source: Characters, target: Characters, message: str
) -> None:
    (tmp_path / "in.txt").write_text("ab\n")
    with pytest.raises(InputError, match=rf"the tokenizer is none of this model\. Found {message}"):
        predict_lines(trainer(replica), source, target, tmp_path / "in.txt", tmp_path / "out.tsv")


def test_a_file_without_lines_is_refused(replica: Replica, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("")
    with pytest.raises(InputError, match=r"in\.txt: no line to predict from"):
        predict_lines(trainer(replica), SOURCE, TARGET, tmp_path / "in.txt", tmp_path / "out.tsv")


@pytest.mark.parametrize(
    ("text", "message"),
    [("ab\n\nc\n", "line 2: an empty source"), ("ab\nxa\n", "line 2: a character is not in the vocabulary. Found 'x'")],
)
def test_lines_that_are_no_sources_are_refused(replica: Replica, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "in.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        predict_lines(trainer(replica), SOURCE, TARGET, tmp_path / "in.txt", tmp_path / "out.tsv")
    assert not (tmp_path / "out.tsv").exists()


def test_another_model_is_refused() -> None:
    with pytest.raises(InputError, match="the model is no encoder-decoder"):
        halves(gpt(5, 8, layers=1, heads=1, width=4), (8,))


def test_predictions_of_lines_are_a_table(tmp_path: Path) -> None:
    check_lines_output(tmp_path / "out.tsv")
    with pytest.raises(InputError, match=r"--output: a file of unknown format\. Found \.csv; expected \.tsv"):
        check_lines_output(tmp_path / "out.csv")
