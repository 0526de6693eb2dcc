"""``hpdl generate``, and ``hpdl predict`` of lines, as a user types them."""

from __future__ import annotations

import inspect
import shutil

import pytest

from hpdl_mpi.cli.text import generate
from hpdl_mpi.train.generate import Wanted
from tests.unit.cli.test_runs import hpdl, refuse, succeed

JOB = """
name = "tiny"
[model]
name = "gpt"
vocabulary = 6
context = 8
layers = 1
heads = 2
width = 16
[data]
train = "{data}/train"
context = 8
[training]
steps = 40
global_batch_size = 8
loss = "cross_entropy"
[optimizer]
name = "adam"
lr = 0.02
[parallel]
threads = 1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with text, a job and its run; the text itself is gone."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text("abcde\n" * 60)
    succeed("data", "convert", folder / "text.txt", folder / "data", "--tokens", "characters", "--test-fraction", "0")
    (folder / "job.toml").write_text(JOB.format(data=folder / "data"))
    succeed("train", folder / "job.toml", "--run-dir", folder / "run")
    shutil.rmtree(folder / "data")
    return folder


def test_a_run_writes_text(folder):
    assert succeed("generate", folder / "run", "--prompt", "ab", "--max-tokens", 12, "--greedy") == "abcde\nabcde\nab\n"
    drawn = ["generate", folder / "run", "--max-tokens", 9, "--temperature", 4, "--top-k", 0, "--num-samples", 2]
    both = succeed(*drawn)
    assert len(both.split("\n---\n")) == 2
    assert succeed(*drawn) == both != succeed(*drawn, "--seed", 1)
    assert succeed("generate", folder / "run", "--beams", 2, "--max-tokens", 6) == "\nabcde\n\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", "abx"], "--prompt: line 1: a character is not in the vocabulary. Found 'x'"),
        (["--temperature", "0"], "temperature: out of range. Found 0.0"),
        (["--beams", "2", "--greedy"], "--beams: an option that plays no part. Found --greedy"),
        (["--greedy", "--num-samples", "2"], "--greedy: an option that plays no part. Found --num-samples"),
        (["--beams", "2", "--top-k", "5"], "--beams: an option that plays no part. Found --top-k"),
        (["--length-penalty", "1"], "draws: an option that plays no part. Found --length-penalty"),
        (["--beams", "1000000000"], "beams: out of range"),
        (["--end", "ab"], "--end: no single token. Found 2 tokens"),
    ],
)
def test_what_cannot_be_written_is_refused(folder, options, message):
    assert message in refuse("generate", folder / "run", *options)


def test_other_runs_and_inputs_are_refused(folder, tmp_path):
    assert "the folder holds no run of a job" in refuse("generate", tmp_path)
    assert "the run is none on pairs of text" in refuse("predict", folder / "run", folder / "text.txt")
    assert "--input: what is to be predicted. Found neither" in refuse("predict", folder / "run")
    for option, value in (("--array", "x"), ("--pp", 2)):
        message = refuse("predict", folder / "run", folder / "text.txt", option, value)
        assert f"{option}: plays no part in predictions of lines of text. Found {value}" in message
    message = refuse("predict", folder / "run", folder / "text.TXT", "--length-penalty", 1)
    assert "--length-penalty: ranks beams, and there are none" in message
    assert "--beams: plays no part in predictions of samples" in refuse("predict", folder / "run", "a.h5", "--beams", 2)
    assert "Found both" in refuse("predict", folder / "run", "a.txt", "--input", "b.txt")
    result = hpdl("generate", folder / "run", "--max-tokens", 0)
    assert result.returncode == 2
    assert "--max-tokens" in result.stderr


PAIRS = """
name = "pairs"
[model]
name = "seq2seq"
source_vocabulary = 7
target_vocabulary = 7
layers = 1
heads = 2
width = 16
hidden = 16
[data]
train = "{data}/train"
pairs = true
[training]
epochs = 20
global_batch_size = 8
loss = {{ name = "cross_entropy", ignore_index = -1 }}
[optimizer]
name = "adam"
lr = 0.01
[parallel]
threads = 1
"""


def test_a_run_on_pairs_writes_targets(tmp_path):
    lines = [f"{a}{b}{c}" for a in "abc" for b in "abc" for c in "abc"]
    (tmp_path / "pairs.tsv").write_text("".join(f"{line}\t{line.upper()}\n" for line in lines))
    tokens = ["--pairs", "--tokens", "characters", "--test-fraction", "0"]
    succeed("data", "convert", tmp_path / "pairs.tsv", tmp_path / "data", *tokens)
    (tmp_path / "job.toml").write_text(PAIRS.format(data=tmp_path / "data"))
    succeed("train", tmp_path / "job.toml", "--run-dir", tmp_path / "run")
    output = succeed("predict", tmp_path / "run", tmp_path / "pairs.tsv", "--output", tmp_path / "out.tsv")
    assert output == f"27 predictions written to {tmp_path / 'out.tsv'}\n"
    written = dict(line.split("\t") for line in (tmp_path / "out.tsv").read_text().splitlines())
    assert list(written) == lines
    assert sum(target == source.upper() for source, target in written.items()) > 20
    succeed("predict", tmp_path / "run", "--input", tmp_path / "pairs.tsv", "--beams", 3)
    assert len((tmp_path / "run/predictions.tsv").read_text().splitlines()) == 27
    assert "the run is none of a language model. Found one on pairs" in refuse("generate", tmp_path / "run")
    assert "Name a .txt or .tsv file" in refuse("predict", tmp_path / "run", tmp_path / "data")


def test_the_options_of_text_are_those_of_python():
    wanted, options = vars(Wanted()), inspect.signature(generate).parameters
    assert {name: options[name].default for name in wanted} == wanted


def test_words_of_a_prompt_that_are_taken_for_an_unknown_are_said(folder, tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat\n" * 40 + "rats\n" * 2)
    options = ["--tokens", "words", "--vocab-size", 5, "--test-fraction", "0"]
    succeed("data", "convert", tmp_path / "text.txt", tmp_path / "data", *options)
    (tmp_path / "job.toml").write_text(JOB.format(data=tmp_path / "data"))
    succeed("train", tmp_path / "job.toml", "--run-dir", tmp_path / "run", "--set", "training.steps=1")
    found = hpdl("generate", tmp_path / "run", "--prompt", "the zebra", "--max-tokens", 1)
    said = "what is not in the vocabulary was taken for an unknown: in --prompt\n"
    assert (found.returncode, found.stderr) == (0, said)
