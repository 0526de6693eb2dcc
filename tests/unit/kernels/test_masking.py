"""Tokens to predict: each text alone decides, in the shares of the paper."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpdl_mpi.kernels.masking import mask_tokens
from hpdl_mpi.kernels.random import derive_key
from tests import reference as ref

VOCABULARY, SPECIALS, MASK = 50, 4, 3
IGNORED = -1
KEY = derive_key(0, 0, "masking")


def masked(tokens: np.ndarray, ids: np.ndarray, key: np.uint64 = KEY, **settings: float) -> tuple[np.ndarray, ...]:
    """Return inputs and targets."""
    inputs, targets = np.empty_like(tokens), np.empty_like(tokens)
    sizes = {"vocabulary": VOCABULARY, "specials": SPECIALS, "mask": MASK}
    mask_tokens(tokens, key, ids, **sizes, inputs=inputs, targets=targets, **settings)
    return inputs, targets


def twin(tokens: np.ndarray, ids: np.ndarray, rate: float) -> tuple[np.ndarray, ...]:
    """Return the same, token by token."""
    inputs, targets = tokens.copy(), np.full_like(tokens, IGNORED)
    for i, t in np.ndindex(tokens.shape):
        choice, fate, other, _ = ref.words(int(KEY), int(ids[i]), 4 * (t + 1))[4 * t :]
        if tokens[i, t] >= SPECIALS and choice < int(rate * 2**32):
            targets[i, t] = tokens[i, t]
            if fate < int(0.8 * 2**32):
                inputs[i, t] = MASK
            elif fate < int(0.9 * 2**32):
                inputs[i, t] = SPECIALS + other * (VOCABULARY - SPECIALS) // 2**32
    return inputs, targets


@given(
    seed=st.integers(0, 2**32 - 1),
    ids=st.lists(st.integers(0, 2**62), max_size=3),
    steps=st.integers(0, 9),
    rate=st.sampled_from([0.0, 0.15, 0.5, 1.0]),
)
def test_tokens_are_masked_as_the_naive_twin_does(seed: int, ids: list[int], steps: int, rate: float) -> None:
    tokens = np.random.default_rng(seed).integers(VOCABULARY, size=(len(ids), steps))
    numbers = np.array(ids, np.int64)
    for found, expected in zip(masked(tokens, numbers, rate=rate), twin(tokens, numbers, rate), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_shares_are_those_of_the_paper() -> None:
    """Of 100,000 tokens: each share is a mean of draws, whose deviation is at most 1 / (2 sqrt(draws))."""
    tokens = np.random.default_rng(0).integers(SPECIALS, VOCABULARY, size=(1000, 100))
    inputs, targets = masked(tokens, np.arange(1000))
    chosen = targets != IGNORED
    assert chosen.mean() == pytest.approx(0.15, abs=5 * 0.5 / 100_000**0.5)
    hidden, kept = (inputs == MASK)[chosen], (inputs == tokens)[chosen]
    slack = 5 * 0.5 / chosen.sum() ** 0.5
    assert hidden.mean() == pytest.approx(0.8, abs=slack)
    # One of the replacements in 46 is the token itself.
    assert kept.mean() == pytest.approx(0.1 + 0.1 / (VOCABULARY - SPECIALS), abs=slack)
    replaced = inputs[chosen & (inputs != MASK) & (inputs != tokens)]
    assert set(replaced.tolist()) == set(range(SPECIALS, VOCABULARY))
    np.testing.assert_array_equal(inputs[~chosen], tokens[~chosen])
    np.testing.assert_array_equal(targets[chosen], tokens[chosen])


def test_specials_are_never_to_be_predicted() -> None:
    tokens = np.random.default_rng(0).integers(SPECIALS, size=(20, 10))
    inputs, targets = masked(tokens, np.arange(20), rate=1.0)
    np.testing.assert_array_equal(inputs, tokens)
    assert (targets == IGNORED).all()


def test_what_is_masked_follows_the_sample_and_the_epoch() -> None:
    tokens, ids = np.random.default_rng(0).integers(VOCABULARY, size=(6, 40)), np.arange(6) + 2**40
    order = np.array([3, 0, 5, 1])
    for found, expected in zip(masked(tokens[order], ids[order]), masked(tokens, ids), strict=True):
        np.testing.assert_array_equal(found, expected[order])
    assert (masked(tokens, ids, derive_key(0, 1, "masking"))[1] != masked(tokens, ids)[1]).any()


def test_inputs_may_take_the_place_of_tokens() -> None:
    tokens, ids = np.random.default_rng(0).integers(VOCABULARY, size=(6, 40)), np.arange(6)
    inputs, targets = masked(tokens, ids)
    own = np.empty_like(tokens)
    mask_tokens(tokens, KEY, ids, vocabulary=VOCABULARY, specials=SPECIALS, mask=MASK, inputs=tokens, targets=own)
    np.testing.assert_array_equal(tokens, inputs)
    np.testing.assert_array_equal(own, targets)
