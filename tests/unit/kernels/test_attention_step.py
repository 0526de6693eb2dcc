"""Attention of one query: what it shares with attention in blocks, and what becomes of numbers that are none."""

from __future__ import annotations

import numpy as np
import pytest

from hpdl_mpi.kernels.attention_step import attend_one


def attend(queries: np.ndarray, memory: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Return the outputs of two heads over all steps of a memory."""
    n, keys, _ = memory.shape
    y, scores = np.full_like(queries, np.nan), np.full((n, 2, keys), np.nan, queries.dtype)
    attend_one(queries, memory, keys, 2, visible, scores, y)
    return y


@pytest.fixture
def arrays() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, 6)), rng.normal(size=(2, 5, 12))


def test_it_is_that_of_the_definition(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    queries, memory = arrays
    q, k, v = queries.reshape(2, 2, 3), memory[:, :, :6].reshape(2, 5, 2, 3), memory[:, :, 6:].reshape(2, 5, 2, 3)
    weights = np.exp(np.einsum("nhd,nkhd->nhk", q, k) / np.sqrt(3))
    weights[1, :, [0, 3]] = 0
    weights /= weights.sum(-1, keepdims=True)
    visible = np.array([[1.0, 1, 1, 1, 1], [0, 1, 1, np.nan, 1]])  # what is not above 0 hides
    expected = np.einsum("nhk,nkhd->nhd", weights, v).reshape(2, 6)
    np.testing.assert_allclose(attend(queries, memory, visible), expected, rtol=0, atol=1e-14)


def test_a_nan_stays_where_it_is_seen(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    queries, memory = arrays
    queries[0, 0] = np.nan
    memory[1, 2] = np.nan
    hidden = np.ones((2, 5))
    hidden[1, 2] = 0
    y = attend(queries, memory, hidden[:, :0])
    np.testing.assert_array_equal(np.isnan(y), [[1, 1, 1, 0, 0, 0], [1] * 6])


def test_what_sees_nothing_is_zero(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    assert (attend(*arrays, np.zeros((2, 5))) == 0).all()
