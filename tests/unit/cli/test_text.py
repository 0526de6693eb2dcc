"""``hpdl generate``, and ``hpdl predict`` of lines, as a user types them."""

from __future__ import annotations

import shutil

import pytest

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
        (["--beams", "2", "--greedy"], "--beams: beam search finds one text. Found --greedy"),
        (["--greedy", "--num-samples", "2"], "--greedy: the likeliest tokens are one text"),
    ],
)
def test_what_cannot_be_written_is_refused(folder, options, message):
    assert message in refuse("generate", folder / "run", *options)


def test_other_runs_and_inputs_are_refused(folder, tmp_path):
    assert "the folder holds no run of a job" in refuse("generate", tmp_path)
    assert "the run is none on pairs of text" in refuse("predict", folder / "run", folder / "text.txt")
    assert "--input: what is to be predicted. Found neither" in refuse("predict", folder / "run")
    assert "Found both" in refuse("predict", folder / "run", "a.txt", "--input", "b.txt")
    result = hpdl("generate", folder / "run", "--max-tokens", 0)
    assert result.returncode == 2
    assert "--max-tokens" in result.stderr
