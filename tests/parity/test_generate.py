"""What is generated against `transformers`, token by token, on the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from hpdl_mpi.bench.generate import bench_generate
from hpdl_mpi.nn.decoding import Decoder
from hpdl_mpi.nn.search import Sampling, beam_search, generate, greedy
from hpdl_mpi.weights import TensorFile, fill
from tests.parity.test_gpt import CONTEXT, STEPS, VOCABULARY, ours, theirs

pytestmark = pytest.mark.parity

END = 7


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT2LMHeadModel, object]:
    """A model of theirs, and ours with its weights, both in double precision so that no two tokens are equally good."""
    folder: Path = tmp_path_factory.mktemp("weights")
    module, replica = theirs(), ours(np.float64)
    module.save_pretrained(folder)
    fill(TensorFile(folder / "model.safetensors"), replica.model, replica.arrays())
    return module.double().eval(), replica


def decoder(replica: object) -> Decoder:
    return Decoder(replica.model, (STEPS,), CONTEXT)  # type: ignore[attr-defined]


def prompts() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(VOCABULARY, size=length) for length in (1, 4, 9, 4)]


def their_answer(module: GPT2LMHeadModel, prompt: np.ndarray, **settings: object) -> list[int]:
    tokens = torch.from_numpy(prompt[None])
    ids = module.generate(
        tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=12, pad_token_id=0, **settings
    )
    return ids[0, len(prompt) :].tolist()


@pytest.mark.parametrize("end", [None, END])
def test_greedy_text_is_theirs(pair: tuple, end: int | None) -> None:
    module, replica = pair
    rows = np.array(list(generate(decoder(replica), prompts(), greedy, max_tokens=12, end=end))).T
    for row, prompt in zip(rows, prompts(), strict=True):
        assert row[row >= 0].tolist() == their_answer(module, prompt, eos_token_id=end)


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("end", [None, END, 29])
@pytest.mark.parametrize("beams", [2, 3])
def test_beam_search_is_theirs(pair: tuple, beams: int, end: int | None, length_penalty: float) -> None:
    module, replica = pair
    for prompt in prompts():
        best, *_ = beam_search(
            decoder(replica), prompt, beams=beams, max_tokens=12, end=end, length_penalty=length_penalty
        )
        settings = {"num_beams": beams, "length_penalty": length_penalty, "early_stopping": False}
        assert best.tokens.tolist() == their_answer(module, prompt, eos_token_id=end, **settings)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.6), (8, 0.5)])
def test_draws_are_from_the_same_tokens_as_theirs(top_k: int, top_p: float) -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = np.random.default_rng(1).normal(scale=2.0, size=(1, 40))
    scores = TemperatureLogitsWarper(0.7)(None, torch.from_numpy(logits))
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    expected = torch.softmax(scores, -1)[0].numpy()
    count = 50_000
    choose = Sampling(0.7, top_k, top_p, streams=np.arange(count))
    drawn = choose(np.repeat(logits, count, 0), np.zeros(count, np.int64))
    found = np.bincount(drawn, minlength=40) / count
    assert (found[expected == 0] == 0).all()
    # five standard deviations of a share of `count` draws
    assert (abs(found - expected) <= 5 * np.sqrt(expected / count) + 1e-12).all()


def test_their_text_is_timed_beside_ours() -> None:
    result = bench_generate(
        "gpt_nano", 1, "transformers", prompt_tokens=3, new_tokens=4, num_rounds=2, turn_seconds=0.0
    )
    assert set(result["vs"]) == {"transformers"}
    assert result["ratio"] == pytest.approx(result["vs"]["transformers"]["step_seconds"] / result["step_seconds"])
    assert result["versions"]["transformers"]
