"""Sequences in pieces give what they give as a whole."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.kernels.jit import counted_allocations
from hpdl_mpi.kernels.threads import set_threads
from hpdl_mpi.nn import (
    LSTM,
    Context,
    CrossAttention,
    CrossLinear,
    Embedding,
    Flatten,
    Layer,
    Linear,
    Members,
    MicroBatch,
    Pool,
    SelfAttention,
    Sequential,
)
from hpdl_mpi.nn.decoding import Decoder
from tests.allocations import Growth
from tests.threads import needs_two_threads
from tests.unit.nn.decoding_models import MODELS, STEPS, VOCABULARY, built

PIECES = [(STEPS,), (1,) * STEPS, (5, 1, 1, 4, 1), (1, 7, 3)]

named = pytest.mark.parametrize("name", MODELS)


def drawn(n: int = 3, steps: int = STEPS) -> np.ndarray:
    return np.random.default_rng(1).integers(VOCABULARY, size=(n, steps))


def whole(model: Layer, tokens: np.ndarray) -> np.ndarray:
    """Return the logits of all steps of whole sequences."""
    batch = MicroBatch(Pool(poison=True))
    batch.begin(np.arange(len(tokens)), training=False)
    return model.forward(tokens, Context(batch, needs_backward=False)).copy()


@named
@pytest.mark.parametrize("pieces", PIECES)
def test_pieces_give_the_logits_of_the_whole(name: str, pieces: tuple[int, ...]) -> None:
    model, tokens, place = built(MODELS[name]()), drawn(), 0
    expected, decoder = whole(model, tokens), Decoder(model, (STEPS,), STEPS)
    for steps in pieces:
        piece = np.ascontiguousarray(tokens[:, place : place + steps])
        place += steps
        np.testing.assert_allclose(decoder(piece), expected[:, place - 1], rtol=0, atol=1e-12)
        assert decoder.past == place


@named
def test_single_precision_rounds_no_more_than_sums_in_any_order_may(name: str) -> None:
    single, double = (built(MODELS[name](), dtype=dtype) for dtype in (np.float32, np.float64))
    tokens = drawn()
    exact = whole(double, tokens)
    # Both ways round the same terms, in another order: they lie as far apart as each may lie from the exact value.
    error = abs(whole(single, tokens) - exact).max()
    decoder = Decoder(single, (STEPS,), STEPS)
    for t in range(STEPS):
        logits = decoder(np.ascontiguousarray(tokens[:, t : t + 1]))
        assert abs(logits - exact[:, t]).max() <= 4 * error + 16 * np.finfo(np.float32).eps * abs(exact).max()


@needs_two_threads
def test_bits_do_not_depend_on_threads() -> None:
    results = []
    for threads in (1, 2):
        set_threads(threads)
        try:
            decoder = Decoder(built(MODELS["gpt"](), dtype=np.float32), (STEPS,), STEPS)
            results.append([decoder(np.ascontiguousarray(drawn()[:, t : t + 1])).copy() for t in range(5)])
        finally:
            set_threads(1)
    np.testing.assert_array_equal(*results)


@named
def test_sequences_go_on_as_others(name: str) -> None:
    model, tokens, parents = built(MODELS[name]()), drawn(), np.array([2, 0, 0, 2, 1])
    decoder = Decoder(model, (STEPS,), STEPS)
    decoder(np.ascontiguousarray(tokens[:, :4]))
    decoder.reorder(parents)
    more = drawn(5)[:, 4:]
    expected = whole(model, np.concatenate([tokens[parents, :4], more], axis=1))
    for t in range(4, STEPS):
        logits = decoder(np.ascontiguousarray(more[:, t - 4 : t - 3]))
        np.testing.assert_allclose(logits, expected[:, t], rtol=0, atol=1e-12)


def test_after_the_capacity_the_later_half_is_read_anew() -> None:
    model, tokens = built(MODELS["gpt"]()), drawn(steps=3 * STEPS)
    decoder, first = Decoder(model, (STEPS,), STEPS, slides=True), 0
    for t in range(3 * STEPS):
        if t - first == STEPS:
            first = t + 1 - STEPS // 2
        logits = decoder(np.ascontiguousarray(tokens[:, t : t + 1]))
        expected = whole(model, np.ascontiguousarray(tokens[:, first : t + 1]))
        np.testing.assert_allclose(logits, expected[:, -1], rtol=0, atol=1e-12)


def test_a_prompt_above_the_capacity_is_read_from_its_later_half_on() -> None:
    model, tokens = built(MODELS["gpt"]()), drawn(steps=2 * STEPS)
    logits = Decoder(model, (STEPS,), STEPS, slides=True)(tokens)
    expected = whole(model, np.ascontiguousarray(tokens[:, -(STEPS // 2) :]))
    np.testing.assert_allclose(logits, expected[:, -1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("first", [1, 2 * STEPS])
def test_recurrent_models_go_on_from_their_state(first: int) -> None:
    model, tokens = built(MODELS["lstm"]()), drawn(steps=3 * STEPS)
    decoder = Decoder(model, (STEPS,), STEPS)
    logits = decoder(np.ascontiguousarray(tokens[:, :first]))
    for t in range(first, 3 * STEPS):
        logits = decoder(np.ascontiguousarray(tokens[:, t : t + 1]))
    np.testing.assert_allclose(logits, whole(model, tokens)[:, -1], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "tokens",
    [np.ones((1, 3)), np.ones((1, 3), np.int32), np.ones((1, 0), np.int64), np.ones(3, np.int64), drawn()[:, ::2]],
    ids=["real", "narrow", "none", "flat", "apart"],
)
def test_what_are_no_pieces_of_sequences_is_refused(tokens: np.ndarray) -> None:
    with pytest.raises(InputError, match="no piece of sequences"):
        Decoder(built(MODELS["gpt"]()), (STEPS,), STEPS)(tokens)


@pytest.mark.parametrize("name", ["gpt", "lstm"])
def test_pieces_of_other_sequences_are_refused(name: str) -> None:
    decoder = Decoder(built(MODELS[name]()), (STEPS,), STEPS)
    decoder(np.ones((2, 1), np.int64))
    for count in (1, 3):
        with pytest.raises(InputError, match=rf"pieces of other sequences\. Found {count} of them; expected 2"):
            decoder(np.ones((count, 1), np.int64))
    for parents in ([0, 2], [-1], []):
        with pytest.raises(InputError, match=r"parents: no such sequences\. .*expected some of 2, from 0"):
            decoder.reorder(np.array(parents, np.int64))
    decoder.forget()
    decoder(np.ones((3, 1), np.int64))


def test_sequences_can_be_forgotten() -> None:
    model, tokens = built(MODELS["gpt"]()), drawn()
    decoder = Decoder(model, (STEPS,), STEPS)
    first = decoder(tokens).copy()
    decoder.forget()
    np.testing.assert_array_equal(decoder(tokens), first)


@named
def test_a_steady_step_takes_no_memory(name: str) -> None:
    decoder = Decoder(built(MODELS[name](), dtype=np.float32), (STEPS,), STEPS)
    token = np.ones((1, 1), np.int64)
    for _ in range(3):
        decoder(token)
    pool = decoder._batch.pool
    held, peak, live = pool.bytes_held, pool.peak_live, pool.bytes_live
    with counted_allocations() as count:
        decoder(token)
        first = count()
    with counted_allocations() as count:
        for _ in range(5):
            decoder(token)
        assert count() == 5 * first  # the small blocks of arrays that kernels are handed
    assert (pool.bytes_held, pool.peak_live, pool.bytes_live) == (held, peak, live)


@pytest.mark.parametrize("name", ["llama", "rotary, shared keys", "sinusoidal"])
def test_tables_of_positions_are_made_once_for_all_steps(name: str) -> None:
    decoder = Decoder(built(MODELS[name](), dtype=np.float32), (STEPS,), capacity=400)
    token = np.ones((1, 1), np.int64)
    for _ in range(300):  # a table of as many steps would show
        decoder(token)
    assert Growth(lambda: decoder(token)).peak < 300 * 4


def crossing() -> Layer:
    """Return a decoder that reads tokens, a memory and its mask."""
    return Sequential(Embedding(VOCABULARY, 8), CrossLinear(8, 16), CrossAttention(2), Members(0), Linear(VOCABULARY))


def test_the_memory_is_projected_once() -> None:
    shape = ((STEPS,), (5, 8), (5,))
    model, tokens = built(crossing(), shape), drawn()
    rng = np.random.default_rng(2)
    memory, mask = rng.normal(size=(3, 5, 8)), np.array([[1.0] * 5, [1.0] * 3 + [0.0] * 2, [1.0] + [0.0] * 4])
    batch = MicroBatch(Pool(poison=True))
    batch.begin(np.arange(3), training=False)
    expected = model.forward((tokens, memory, mask), Context(batch, needs_backward=False)).copy()
    decoder = Decoder(model, shape, STEPS, given=(memory, mask))
    for t in range(4):
        if t == 1:
            memory[:] = np.nan  # nobody looks at it any more
        logits = decoder(np.ascontiguousarray(tokens[:, t : t + 1]))
        np.testing.assert_allclose(logits, expected[:, t], rtol=0, atol=1e-12)
    parents = np.array([1, 1, 2, 0])
    decoder.reorder(parents)
    logits = decoder(np.ascontiguousarray(tokens[parents, 4:5]))
    np.testing.assert_allclose(logits, expected[parents, 4], rtol=0, atol=1e-12)


def sees_all() -> Layer:
    return Sequential(Embedding(VOCABULARY, 6), SelfAttention(1), Linear(VOCABULARY))


def hides() -> Layer:
    return Sequential(Embedding(VOCABULARY, 6, mask=0), SelfAttention(1, causal=True), Members(0), Linear(VOCABULARY))


def both_ways() -> Layer:
    return Sequential(Embedding(VOCABULARY, 6), LSTM(4, bidirectional=True), Linear(VOCABULARY))


@pytest.mark.parametrize("make", [sees_all, hides, both_ways])
def test_a_layer_that_cannot_take_pieces_says_so(make: Callable[[], Layer]) -> None:
    decoder = Decoder(built(make()), (STEPS,), STEPS)
    with pytest.raises(InputError, match="cannot take a sequence in pieces"):
        decoder(drawn())


def test_a_sequence_above_the_capacity_is_refused() -> None:
    decoder = Decoder(built(MODELS["gpt"]()), (STEPS,), STEPS)
    decoder(drawn())
    with pytest.raises(InputError, match=r"longer than the context\. Found 13 steps; expected at most 12"):
        decoder(np.zeros((3, 1), np.int64))


def test_a_model_without_logits_of_steps_is_refused() -> None:
    model = built(Sequential(Embedding(VOCABULARY, 2), Flatten(), Linear(3)))
    with pytest.raises(InputError, match="does not make logits of steps"):
        Decoder(model, (STEPS,), STEPS)
