from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpdl_mpi.base.errors import BadSample, InputError
from hpdl_mpi.data import Augment, Dataset, Loader, Transform, Windows
from hpdl_mpi.kernels.jit import counted_allocations


def write_tokens(folder: Path, counts: list[int], chunk: int = 4, dtype: type = np.uint8) -> np.ndarray:
    """Write tokens into several files and return all of them."""
    tokens = np.random.default_rng(0).integers(0, 200, sum(counts)).astype(dtype)
    stops = np.cumsum(counts)
    for index, (count, stop) in enumerate(zip(counts, stops, strict=True)):
        with h5py.File(folder / f"part-{index}.h5", "w") as file:
            data = tokens[stop - count : stop]
            file.create_dataset("tokens", data=data, chunks=(min(chunk, count),), compression="gzip")
    return tokens


@settings(deadline=None, max_examples=50)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    context=st.integers(1, 12),
    chunk=st.integers(1, 9),
    dtype=st.sampled_from([np.uint8, np.uint16, np.int32]),
    data=st.data(),
)
def test_windows_are_parts_of_the_text_whatever_the_shards(tmp_path_factory, counts, context, chunk, dtype, data):
    folder = tmp_path_factory.mktemp("tokens")
    tokens = write_tokens(folder, counts, chunk, dtype)
    if len(tokens) <= context:
        with pytest.raises(InputError, match="too few tokens for a window"):
            Windows.open(folder, context=context)
        return
    count = (len(tokens) - 1) // context
    with Windows.open(folder, context=context, cache_bytes=data.draw(st.sampled_from([0, 2**20]))) as windows:
        assert windows.num_samples == count
        assert windows.input_shape == windows.target_shape == (context,)
        ids = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=20)), np.int64)
        inputs, targets = np.zeros((2, ids.size, context), dtype)
        windows.read(ids, inputs, targets)
        for i, x, y in zip(ids, inputs, targets, strict=True):
            assert x.tolist() == tokens[i * context : (i + 1) * context].tolist()
            assert y.tolist() == tokens[i * context + 1 : (i + 1) * context + 1].tolist()
        for which, first in (("inputs", 0), ("targets", 1)):
            whole = np.concatenate([block.copy() for block in windows.blocks(which)])
            assert np.array_equal(whole.ravel(), tokens[first : first + count * context])
        starts = windows.block_starts
        assert starts[0] == 0
        assert starts[-1] == count
        assert np.all(np.diff(starts) > 0)
        assert np.array_equal(np.sort(windows.order(1, 2)), np.arange(count))


@pytest.fixture
def windows(tmp_path) -> Windows:
    write_tokens(tmp_path, [100, 57, 30])
    return Windows.open(tmp_path, context=8)


def test_what_is_not_wanted_is_not_written(windows) -> None:
    whole, inputs, targets = np.zeros((3, 2, 8), np.uint8)
    windows.read(np.array([3, 0]), inputs, targets)
    windows.read(np.array([3, 0]), None, whole)
    assert np.array_equal(whole, targets)
    windows.read(np.array([3, 0]), whole, None)
    assert np.array_equal(whole, inputs)


def test_impossible_reads_are_refused(windows) -> None:
    with pytest.raises(IndexError, match=r"sample ids must lie in \[0, 23\)"):
        windows.read(np.array([23]), np.zeros((1, 8), np.uint8), None)
    with pytest.raises(ValueError, match="targets: need a C-contiguous"):
        windows.read(np.array([2]), None, np.zeros((1, 9), np.uint8))


def test_the_fingerprint_tells_what_ids_mean(windows, tmp_path) -> None:
    assert windows.fingerprint == Windows.open(tmp_path, context=8).fingerprint
    assert windows.fingerprint != Windows.open(tmp_path, context=9).fingerprint


def test_a_bad_window_is_found_in_its_file(windows, tmp_path) -> None:
    with (
        pytest.raises(BadSample, match=rf"{tmp_path}/part-1\.h5: window from token 4: data\.inputs: bad"),
        windows.naming_files(),
    ):
        raise BadSample("bad", sample=13, where="data.inputs")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((9, 2), np.uint8), r"no flat array of tokens\. Found samples of shape \(2,\), uint8"),
        (np.zeros(9, np.float32), r"no flat array of tokens\. Found samples of shape \(\), float32"),
        (np.zeros(8, np.uint8), "too few tokens for a window. Found 8 tokens; expected 9 at least"),
    ],
)
def test_arrays_that_are_no_text_are_refused(write_file, array, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Windows.open(write_file("a.h5", {"tokens": array}), context=8)


def test_an_absent_array_is_refused(write_file) -> None:
    with pytest.raises(InputError, match=r"no array 'tokens'\. Found x"):
        Windows.open(write_file("a.h5", {"x": np.zeros(9, np.uint8)}), context=2)


@pytest.mark.parametrize("context", [0, -1, 2.0])
def test_a_context_that_is_none_is_refused(write_file, context: object) -> None:
    with pytest.raises(
        InputError, match=rf"context: out of range\. Found {context}; expected an integer of at least 1"
    ):
        Windows.open(write_file("a.h5", {"tokens": np.zeros(9, np.uint8)}), context=context)


def test_batches_hold_tokens_and_what_follows_each(windows) -> None:
    loader = Loader(windows, global_batch_size=5, seed=3, tokens=True)
    assert loader.input_shape == loader.target_shape == (8,)
    seen = []
    for batch in loader.epoch(1):
        assert batch.inputs.dtype == batch.targets.dtype == np.int64
        assert np.array_equal(batch.inputs[:, 1:], batch.targets[:, :-1])
        x = np.zeros(batch.inputs.shape, np.uint8)
        windows.read(batch.sample_ids, x, None)
        assert np.array_equal(batch.inputs, x)
        seen += batch.sample_ids.tolist()
    assert sorted(seen) == list(range(23))


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 3), st.sampled_from(["block", "global", "none"]))
def test_every_world_size_sees_the_same_batches_and_goes_on_from_any(windows, size, batch, done, shuffle) -> None:
    def epoch(rank: int, size: int, offset: int) -> list[np.ndarray]:
        loader = Loader(
            windows, global_batch_size=batch, dp_rank=rank, dp_size=size, shuffle=shuffle, tokens=True, training=False
        )
        return [one.inputs.copy() for one in loader.epoch(2, offset=offset)]

    done = min(done * batch, 23)
    alone = epoch(0, 1, 0)[-(-done // batch) :]
    together = [np.concatenate(shares) for shares in zip(*(epoch(r, size, done) for r in range(size)), strict=True)]
    assert [one.tolist() for one in together] == [one.tolist() for one in alone]


def test_tokens_of_whole_sentences_have_one_class_or_one_for_each(write_file) -> None:
    x = np.arange(12, dtype=np.uint16).reshape(4, 3)
    dataset = Dataset.open(write_file("one.h5", {"x": x[:, :1], "y": x[:, :1]}))
    assert next(Loader(dataset, global_batch_size=4, tokens=True).epoch(0)).targets.shape == (4,)
    for y in (np.arange(4), np.arange(4)[:, None], np.arange(12).reshape(4, 3)):
        dataset = Dataset.open(write_file(f"{y.shape}.h5", {"x": x, "y": y}))
        batch = next(Loader(dataset, global_batch_size=4, shuffle="none", tokens=True).epoch(0))
        assert batch.inputs.tolist() == x.tolist()
        assert batch.inputs.dtype == np.int64
        assert batch.targets.tolist() == (y[:, 0] if y.shape == (4, 1) else y).tolist()
    dataset = Dataset.open(write_file("b.h5", {"x": x, "y": np.full(4, 0.5)}))
    batch = next(Loader(dataset, global_batch_size=4, tokens=True, target_transform=Transform()).epoch(0))
    assert batch.targets.tolist() == [[0.5]] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transform": Transform(scale=0.5)}, r"data\.transform: tokens are not transformed"),
        ({"augment": Augment(mixup=0.2)}, r"data\.augment: tokens are not augmented"),
    ],
)
def test_what_would_change_tokens_is_refused(windows, options, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Loader(windows, global_batch_size=4, tokens=True, **options)


def test_values_are_no_tokens(write_file) -> None:
    dataset = Dataset.open(write_file("a.h5", {"x": np.zeros((4, 3)), "y": np.zeros(4, np.int64)}))
    with pytest.raises(InputError, match=r"the model reads tokens\. Found numbers of type float64; expected integers"):
        Loader(dataset, global_batch_size=4, tokens=True)


@pytest.mark.parametrize("limited", ["memory", "addresses"])
def test_more_samples_than_can_be_put_in_order_are_refused(windows, limited: str, monkeypatch) -> None:
    samples = windows

    def fail(*arguments, **settings):
        raise MemoryError

    if limited == "memory":
        monkeypatch.setattr("hpdl_mpi.base.memory.available", lambda: 48 * samples.num_samples - 1)
    else:
        monkeypatch.setattr("hpdl_mpi.data.samples.epoch_order", fail)
    with pytest.raises(InputError, match=rf"the order of {samples.num_samples} samples"):
        samples.order(0, 0)
    if limited == "memory":
        np.testing.assert_array_equal(samples.order(0, 0, "none"), np.arange(samples.num_samples))


def test_a_huge_label_among_those_of_tokens_is_found(write_file) -> None:
    y = np.zeros((4, 3), np.uint64)
    y[2, 1] = 2**64 - 1
    dataset = Dataset.open(write_file("a.h5", {"x": np.zeros((4, 3), np.uint8), "y": y}))
    with pytest.raises(InputError, match=rf"sample 2: data\.targets: .*Found {2**64 - 1}"), dataset.naming_files():
        next(Loader(dataset, global_batch_size=4, tokens=True).epoch(0))


def test_a_steady_epoch_of_windows_allocates_no_array(tmp_path) -> None:
    write_tokens(tmp_path, [5000], chunk=512)
    loader = Loader(Windows.open(tmp_path, context=16), global_batch_size=16, tokens=True)
    for epoch in range(2):
        for _ in loader.epoch(epoch):
            pass
    with counted_allocations() as count:
        number = sum(1 for _ in loader.epoch(2))
        assert count() <= 12 * number
