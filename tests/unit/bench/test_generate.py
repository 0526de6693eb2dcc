"""``hpdl bench generate``: its result and what it refuses."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.bench.generate import bench_generate, random_prompt
from hpdl_mpi.bench.table import generate_table


@pytest.fixture(scope="module")
def result():
    """A real run of our own contender, as short as can be."""
    return bench_generate("gpt_nano", 1, prompt_tokens=3, new_tokens=4, num_rounds=2, turn_seconds=0.0)


def test_our_own_text_is_timed(result):
    assert json.loads(json.dumps(result)) == result
    assert result["tokens_per_second"] == pytest.approx(4 / result["step_seconds"])
    assert result["peak_bytes"] > 809_856 * 4  # the parameters alone
    assert (result["model"], result["prompt_tokens"], result["new_tokens"], result["vs"]) == ("gpt_nano", 3, 4, {})
    assert len(result["step_seconds_by_round"]["hpdl"]) == result["rounds"] == 2


def test_a_table_has_a_row_for_each_contender(result):
    figures = {"step_seconds": 9.0, "peak_bytes": 2**20}
    shown = result | {"vs": {"transformers": figures}}
    shown["spread"] = result["spread"] | {"transformers": dict.fromkeys(result["spread"]["hpdl"], 9.0)}
    console = Console(width=120)
    with console.capture() as capture:
        console.print(generate_table(shown))
    text = capture.get()
    assert "Text: gpt_nano, 4 tokens after 3, float32, 1 thread" in text
    assert "0.4" in next(line for line in text.splitlines() if "transformers" in line)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "lenet"}, "--model: unknown model"),
        ({"vs": "torch"}, "--vs: unknown contender"),
        ({"threads": 0}, "--threads: out of range"),
        ({"prompt_tokens": 0}, "--prompt-tokens: out of range"),
        ({"prompt_tokens": 32, "new_tokens": 33}, "at most 64, the model's context"),
        ({"num_rounds": 0}, "--rounds"),
    ],
)
def test_what_cannot_be_timed_is_refused(settings, message):
    arguments = {"model": "gpt_nano", "threads": 1, "prompt_tokens": 3, "new_tokens": 4} | settings
    with pytest.raises(InputError, match=message):
        bench_generate(**arguments)


def test_all_contenders_read_the_same_prompt():
    assert random_prompt("gpt2_124m", 900).shape == (900,)
    assert random_prompt("gpt_nano", 5).tolist() == random_prompt("gpt_nano", 5).tolist()
