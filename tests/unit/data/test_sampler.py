from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.base.shares import share
from hpdl_mpi.data.sampler import epoch_order
from hpdl_mpi.kernels.random import derive_key, sample_keys

block_lengths = st.lists(st.integers(1, 9), min_size=1, max_size=40)
shuffles = st.sampled_from(["block", "global", "none"])


def starts_of(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)])


@settings(max_examples=60, deadline=None)
@given(block_lengths, shuffles, st.integers(0, 2**31), st.integers(0, 100), st.integers(1, 50))
def test_order_is_a_permutation(lengths: list[int], shuffle: str, seed: int, epoch: int, window: int) -> None:
    n = sum(lengths)
    order = epoch_order(n, starts_of(lengths), seed=seed, epoch=epoch, shuffle=shuffle, window=window)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(n))


@settings(max_examples=60, deadline=None)
@given(block_lengths, st.integers(0, 1000), st.integers(1, 7))
def test_block_shuffling_holds_a_bounded_window_of_blocks_open(lengths: list[int], seed: int, window: int) -> None:
    starts = starts_of(lengths)
    order = epoch_order(sum(lengths), starts, seed=seed, epoch=0, shuffle="block", window=window)
    blocks = (np.searchsorted(starts, order, side="right") - 1).tolist()
    first = {block: blocks.index(block) for block in blocks}
    last = {block: len(blocks) - 1 - blocks[::-1].index(block) for block in blocks}
    for position in range(len(blocks)):
        assert sum(first[block] <= position <= last[block] for block in first) <= window + 1


def test_block_shuffling_mixes_all_blocks_of_the_window() -> None:
    starts = np.arange(0, 6401, 64)
    order = epoch_order(6400, starts, seed=0, epoch=0, shuffle="block", window=20)
    blocks = order // 64
    # In the middle of the epoch 128 samples come from up to 21 blocks, on average 6 from each.
    assert all(len(set(blocks[i : i + 128])) >= 18 for i in range(1280, 5120, 128))


def test_block_shuffling_matches_a_naive_twin() -> None:
    def key_of(sample: int, *parts: int | str) -> int:
        key = np.empty(1, np.uint64)
        sample_keys(derive_key(*parts), np.array([sample]), key)
        return int(key[0])

    lengths, window = [4, 3, 5, 1, 4], 2
    starts = starts_of(lengths)
    delayed = [
        (turn + window * key_of(sample, "samples", 7, 3) / 2**64, sample)
        for turn, block in enumerate(sorted(range(5), key=lambda b: key_of(b, "blocks", 7, 3)))
        for sample in range(starts[block], starts[block + 1])
    ]
    order = epoch_order(17, starts, seed=7, epoch=3, shuffle="block", window=window)
    assert order.tolist() == [sample for _, sample in sorted(delayed)]


@pytest.mark.parametrize("shuffle", ["block", "global"])
def test_order_changes_with_seed_and_epoch_and_repeats_with_both(shuffle: str) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return epoch_order(200, np.arange(0, 201, 10), seed=seed, epoch=epoch, shuffle=shuffle, window=4).tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert order(0, 1) != order(1, 0)


def test_no_shuffling_keeps_the_stored_order() -> None:
    assert epoch_order(5, np.array([0, 2, 5]), seed=3, epoch=9, shuffle="none", window=1).tolist() == [0, 1, 2, 3, 4]


def test_an_unknown_kind_of_shuffling_is_refused() -> None:
    with pytest.raises(InputError, match=r"shuffle: out of range\. Found 'blok'; expected block or global or none"):
        epoch_order(5, np.array([0, 2, 5]), seed=0, epoch=0, shuffle="blok", window=1)


def test_global_shuffling_ignores_the_blocks() -> None:
    coarse = epoch_order(60, np.array([0, 60]), seed=1, epoch=0, shuffle="global", window=1)
    fine = epoch_order(60, np.arange(61), seed=1, epoch=0, shuffle="global", window=5)
    assert np.array_equal(coarse, fine)


def test_global_shuffling_has_no_preferred_place() -> None:
    # The mean place of a sample over E epochs has deviation n/sqrt(12 E) = 5.8 here; six of them cover all 100 samples.
    epochs, n = 25, 100
    orders = [epoch_order(n, np.array([0, n]), seed=0, epoch=e, shuffle="global", window=1) for e in range(epochs)]
    places = np.mean([np.argsort(order) for order in orders], axis=0)
    assert np.all(np.abs(places - (n - 1) / 2) < 6 * n / np.sqrt(12 * epochs))


@given(st.integers(0, 500), st.integers(1, 70))
def test_shares_cover_everything_once_in_order_and_are_even(size: int, num_ranks: int) -> None:
    parts = [share(size, rank, num_ranks) for rank in range(num_ranks)]
    assert [i for start, stop in parts for i in range(start, stop)] == list(range(size))
    lengths = [stop - start for start, stop in parts]
    assert max(lengths) - min(lengths) <= 1
