"""How sequences are made of logits."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.nn.decoding import Decoder
from hpdl_mpi.nn.search import NOTHING, Sampling, beam_search, generate, greedy
from tests.unit.nn.decoding_models import MODELS, STEPS, built

END = 3


class Table:
    """A stepper whose logits depend on the last token alone."""

    def __init__(self, logits: np.ndarray) -> None:
        self.logits = logits
        self.last = np.zeros(0, np.int64)

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        assert tokens.dtype == np.int64
        assert tokens.flags.c_contiguous
        self.last = tokens[:, -1]
        return self.logits[self.last]

    def reorder(self, parents: np.ndarray) -> None:
        self.last = self.last[parents]


def table(size: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(size, size))


def decoder() -> Decoder:
    return Decoder(built(MODELS["gpt"]()), (STEPS,), STEPS)


def texts(step: Callable, prompts: list[list[int]], choose: Callable, **settings: int) -> list[list[int]]:
    """Return what follows each prompt."""
    arrays = [np.array(prompt) for prompt in prompts]
    rows = np.array(list(generate(step, arrays, choose, **settings))).T  # type: ignore[arg-type]
    return [[token for token in row if token != NOTHING] for row in rows.tolist()]


def test_greedy_takes_the_likeliest_and_stops_at_the_end() -> None:
    logits = np.full((5, 5), -1.0)
    for token, following in ((0, 2), (2, 4), (4, END), (END, 0), (1, END)):
        logits[token, following] = 1.0
    assert texts(Table(logits), [[0], [1], [4, 1]], greedy, max_tokens=6, end=END) == [[2, 4, END], [END], [END]]
    assert texts(Table(logits), [[0]], greedy, max_tokens=6) == [[2, 4, END, 0, 2, 4]]
    assert texts(Table(logits), [[0]], greedy, max_tokens=2, end=END) == [[2, 4]]


def test_of_equal_logits_greedy_takes_the_first() -> None:
    assert greedy(np.zeros((2, 4), np.float32), np.zeros(2, np.int64)).tolist() == [0, 0]


def test_prompts_of_different_lengths_get_what_each_gets_alone() -> None:
    prompts = [[1, 5, 2, 8, 4], [3], [7, 7, 0]]
    for choose in (greedy, Sampling(seed=4, streams=np.array([5, 0, 9]))):
        together = texts(decoder(), prompts, choose, max_tokens=6)
        for number, prompt in enumerate(prompts):
            alone = choose if choose is greedy else Sampling(seed=4, streams=np.array([[5, 0, 9][number]]))
            assert texts(decoder(), [prompt], alone, max_tokens=6) == [together[number]]


def test_draws_come_as_often_as_their_probabilities_say() -> None:
    row = np.array([[0.3, -1.0, 1.2, 0.0]])
    count = 20_000
    choose = Sampling(temperature=0.7, streams=np.arange(count))
    drawn = choose(np.repeat(row, count, 0), np.zeros(count, np.int64))
    weights = np.exp(row[0] / 0.7)
    expected = count * weights / weights.sum()
    # squared deviations over expectations add up to more than 22 once in 16,000 seeds (chi squared of 3 degrees)
    assert ((np.bincount(drawn, minlength=4) - expected) ** 2 / expected).sum() < 22


@settings(max_examples=200, deadline=None)
@given(
    size=st.integers(1, 60),
    top_k=st.integers(0, 70),
    top_p=st.floats(0.01, 1.0),
    temperature=st.floats(0.1, 3.0),
    seed=st.integers(0, 9),
)
def test_only_the_likeliest_are_drawn_from(size: int, top_k: int, top_p: float, temperature: float, seed: int) -> None:
    row = np.random.default_rng(seed).normal(size=size)
    order = np.argsort(-row)[: top_k or size]
    weights = np.exp(row[order] / temperature)
    before = np.cumsum(weights) - weights
    tolerance = 1e-9 * weights.sum()  # a sum in another order may lie on the other side of the bound
    allowed = set(order[before < top_p * weights.sum() + tolerance].tolist())
    surely = set(order[before < top_p * weights.sum() - tolerance].tolist())
    n = 400
    choose = Sampling(temperature, top_k, top_p, seed, streams=np.arange(n))
    found = set(choose(np.repeat(row[None], n, 0), np.zeros(n, np.int64)).tolist())
    assert found <= allowed
    rare = weights.sum() * 20 / n  # once in e^20 draws of n misses a token of at least this weight
    assert {token for token, weight in zip(order.tolist(), weights, strict=True) if weight > rare} & surely <= found


def test_a_draw_depends_on_seed_sequence_and_number_alone() -> None:
    row = np.zeros((1, 1000), np.float32)

    def drawn(seed: int, stream: int, number: int) -> int:
        return int(Sampling(seed=seed, streams=np.array([stream]))(row, np.array([number]))[0])

    assert drawn(0, 0, 0) == drawn(0, 0, 0)
    places = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert len({drawn(*place) for place in places}) == len(places)


@pytest.mark.parametrize("streams", [np.arange(1), np.arange(3.0), np.arange(3)[:, None]])
def test_streams_are_one_of_each_sequence(streams: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"streams: no numbers of the sequences\. Found .*; expected int64 \(3,\)"):
        Sampling(streams=streams)(np.zeros((3, 4)), np.zeros(3, np.int64))


def test_what_is_impossible_is_never_drawn() -> None:
    row = np.full((1, 6), -np.inf, np.float32)
    row[0, [1, 4]] = 0
    choose = Sampling(streams=np.arange(50))
    assert set(choose(np.repeat(row, 50, 0), np.zeros(50, np.int64)).tolist()) == {1, 4}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_refused(bad: float) -> None:
    logits = table()
    logits[1, 2] = bad
    for choose in (greedy, Sampling(), Sampling(top_k=2)):
        with pytest.raises(InputError, match="not finite numbers"):
            texts(Table(logits), [[1]], choose, max_tokens=3)
    with pytest.raises(InputError, match="not finite numbers"):
        beam_search(Table(logits), np.array([1]), beams=2, max_tokens=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"seed": -1}, "seed"),
    ],
)
def test_settings_of_draws_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampling(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"beams": 0},
        {"beams": 10**9},
        {"max_tokens": 0},
        {"length_penalty": "long"},
        {"length_penalty": 400.0},
        {"length_penalty": -300.0},
    ],
)
def test_settings_of_beams_out_of_range_are_refused(settings: dict) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        beam_search(Table(table()), np.array([0]), **({"beams": 2, "max_tokens": 3} | settings))


def test_what_is_no_prompt_is_refused() -> None:
    empty = np.zeros(0, np.int64)
    with pytest.raises(InputError, match=r"prompts: out of range\. Found 0; expected at least one"):
        list(generate(Table(table()), [], greedy, max_tokens=1))
    for prompt, found in ((np.array([0.7]), r"\(1,\), float64"), (np.array([[1, 2], [3, 4]]), r"\(2, 2\), int64")):
        with pytest.raises(InputError, match=rf"a prompt is not of tokens\. Found shape {found}; expected integers"):
            list(generate(Table(table()), [prompt], greedy, max_tokens=1))
    with pytest.raises(InputError, match=r"max_tokens: out of range\. Found 2\.5"):
        list(generate(Table(table()), [np.array([1])], greedy, max_tokens=2.5))
    with pytest.raises(InputError, match="a prompt is empty"):
        list(generate(Table(table()), [empty], greedy, max_tokens=1))
    with pytest.raises(InputError, match="a prompt is empty"):
        beam_search(Table(table()), empty, beams=1, max_tokens=1)


def likelihoods(logits: np.ndarray, prompt: int, length: int) -> dict[tuple[int, ...], float]:
    """Return the logarithm of the probability of every sequence of at most `length` tokens that ends, or is as long."""
    log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    found = {}
    for size in range(1, length + 1):
        for tokens in itertools.product(range(len(logits)), repeat=size):
            if END in tokens[:-1] or (size < length and tokens[-1] != END):
                continue
            steps = zip((prompt, *tokens), tokens, strict=False)
            found[tokens] = sum(log[one, other] for one, other in steps)
    return found


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_with_beams_for_all_sequences_the_best_of_all_is_found(seed: int, length_penalty: float) -> None:
    logits, length = table(4, seed), 4
    ranked = {tokens: score / len(tokens) ** length_penalty for tokens, score in likelihoods(logits, 0, length).items()}
    beams = 4**length  # so many never stop early, for they are never all done
    found = beam_search(
        Table(logits), np.array([0]), beams=beams, max_tokens=length, end=END, length_penalty=length_penalty
    )
    # Sequences of the same pairs in another order are equally likely, so their order among themselves is open.
    scores = {tuple(beam.tokens.tolist()): beam.score for beam in found}
    assert scores == pytest.approx(ranked, rel=1e-12)
    assert [beam.score for beam in found] == sorted(scores.values(), reverse=True)


def test_one_beam_is_greedy() -> None:
    prompt = [4, 2, 9]
    (beam,) = beam_search(decoder(), np.array(prompt), beams=1, max_tokens=7, length_penalty=0.0)
    assert [beam.tokens.tolist()] == texts(decoder(), [prompt], greedy, max_tokens=7)


def test_beams_of_a_model_go_on_as_their_parents() -> None:
    model, prompt = built(MODELS["gpt"]()), np.array([4, 2])
    beams = beam_search(Decoder(model, (STEPS,), STEPS), prompt, beams=3, max_tokens=6, length_penalty=0.0)
    for beam in beams:
        score, step = 0.0, Decoder(model, (STEPS,), STEPS)
        pieces = prompt[None]
        for token in beam.tokens:
            logits = step(pieces)[0]
            score += logits[token] - np.log(np.exp(logits).sum())
            pieces = np.array([[token]])
        assert beam.score == pytest.approx(score, abs=1e-10)
