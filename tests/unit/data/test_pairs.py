from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpdl_mpi.base import memory
from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data import Augment, Dataset, Loader, Pairs, Transform
from hpdl_mpi.data.pair_batch import PairMaker
from hpdl_mpi.data.sampler import bucketed
from hpdl_mpi.kernels.jit import counted_allocations

COUNT = 37
BOS, EOS = 1, 2


def write_pairs(folder: Path, counts: tuple[int, ...] = (20, 17), longest: int = 9) -> list[tuple[list, list]]:
    """Write pairs of random lengths into several files, and return them without padding."""
    rng = np.random.default_rng(0)
    pairs = [
        (
            [*rng.integers(3, 50, rng.integers(0, longest)).tolist(), EOS],
            [BOS, *rng.integers(3, 300, rng.integers(0, longest)).tolist(), EOS],
        )
        for _ in range(sum(counts))
    ]
    start = 0
    for index, count in enumerate(counts):
        with h5py.File(folder / f"part-{index}.h5", "w") as file:
            for side, (name, dtype) in enumerate((("source", np.uint8), ("target", np.uint16))):
                rows = [pair[side] for pair in pairs[start : start + count]]
                # What lies behind a sequence is not looked at, so it need not be padding.
                array = np.full((count, longest + 1), 77, dtype)
                for row, ids in zip(array, rows, strict=True):
                    row[: len(ids)] = ids
                file[name] = array
                file[f"{name}_length"] = np.array([len(ids) for ids in rows], np.int32)
        start += count
    return pairs


def padded(row: list[int], width: int, padding: int) -> list[int]:
    return row + [padding] * (width - len(row))


@pytest.fixture
def pairs(tmp_path) -> Pairs:
    write_pairs(tmp_path)
    return Pairs.open(tmp_path)


@pytest.mark.parametrize("bucket", [False, True])
def test_batches_are_padded_to_the_longest_pair(tmp_path, bucket: bool) -> None:
    stored = write_pairs(tmp_path)
    loader = Loader(Pairs.open(tmp_path), global_batch_size=5, seed=1, bucket=bucket)
    seen = []
    for batch in loader.epoch(0):
        rows = [stored[i] for i in batch.sample_ids]
        s = -(-max(len(source) for source, _ in rows) // 4) * 4
        t = -(-max(len(target) - 1 for _, target in rows) // 4) * 4
        assert batch.input_shape == ((s,), (t,))
        source, target_in = batch.inputs
        assert source.tolist() == [padded(row, s, 0) for row, _ in rows]
        assert target_in.tolist() == [padded(row[:-1], t, 0) for _, row in rows]
        assert batch.targets.tolist() == [padded(row[1:], t, -1) for _, row in rows]
        for array in (source, target_in, batch.targets):
            assert array.dtype == np.int64
            assert array.flags.c_contiguous
        seen += batch.sample_ids.tolist()
    assert sorted(seen) == list(range(COUNT))
    assert loader.input_shape == ((12,), (12,))
    assert loader.target_shape == (12,)
    assert loader.target_dtype == np.int64


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dp_size=st.integers(1, 5),
    batch_size=st.integers(1, 40),
    epoch=st.integers(0, 3),
    done=st.integers(0, 40),
    shuffle=st.sampled_from(["block", "global", "none"]),
    bucket=st.booleans(),
)
def test_every_world_size_sees_the_same_batches_and_goes_on_from_any(
    pairs, dp_size, batch_size, epoch, done, shuffle, bucket
) -> None:
    def run(rank: int, size: int, offset: int) -> list[tuple]:
        loader = Loader(
            pairs, global_batch_size=batch_size, seed=3, dp_rank=rank, dp_size=size, shuffle=shuffle, bucket=bucket
        )
        return [
            (one.input_shape, one.sample_ids.tolist(), one.inputs[0].tolist(), one.targets.tolist())
            for one in loader.epoch(epoch, offset=offset)
        ]

    alone = run(0, 1, 0)
    assert sorted(i for batch in alone for i in batch[1]) == list(range(COUNT))
    done = min(done, len(alone))
    ranks = [run(rank, dp_size, min(COUNT, done * batch_size)) for rank in range(dp_size)]
    for whole, *shares in zip(alone[done:], *ranks, strict=True):
        assert {share[0] for share in shares} == {whole[0]}  # ranks without samples know the shape too
        for part in (1, 2, 3):
            assert [row for share in shares for row in share[part]] == whole[part]


def test_ranks_get_what_they_read(pairs) -> None:
    whole = next(Loader(pairs, global_batch_size=8).epoch(0))
    shape = whole.input_shape
    first = next(Loader(pairs, global_batch_size=8, reads_targets=False).epoch(0))
    assert np.array_equal(first.inputs[1], whole.inputs[1])
    assert first.targets is None
    last = next(Loader(pairs, global_batch_size=8, reads_inputs=False).epoch(0))
    assert last.inputs is None
    assert np.array_equal(last.targets, whole.targets)
    loader = Loader(pairs, global_batch_size=8, reads_inputs=False, reads_targets=False)
    amid = next(loader.epoch(0))
    assert (amid.inputs, amid.targets) == (None, None)
    assert first.input_shape == last.input_shape == amid.input_shape == shape
    assert loader.nbytes < Loader(pairs, global_batch_size=8).nbytes / 4


def test_lengths_of_more_pairs_than_there_is_memory_for_are_refused(tmp_path, monkeypatch) -> None:
    write_pairs(tmp_path)
    monkeypatch.setattr(memory, "available", lambda: 16 * COUNT - 1)
    with pytest.raises(InputError, match=r"not enough memory for the lengths of 37 pairs.*Use fewer pairs"):
        Pairs.open(tmp_path)


def test_batches_of_like_lengths_have_little_padding(tmp_path) -> None:
    stored = write_pairs(tmp_path, (1000,), longest=60)
    data = Pairs.open(tmp_path)
    tokens = sum(len(source) for source, _ in stored)

    def padding(bucket: bool) -> float:
        loader = Loader(data, global_batch_size=16, bucket=bucket)
        return sum(batch.inputs[0].size for batch in loader.epoch(0)) / tokens - 1

    assert padding(False) > 0.5
    assert padding(True) < 0.15


@settings(deadline=None)
@given(
    count=st.integers(0, 60),
    batch_size=st.integers(1, 9),
    window=st.integers(1, 4),
    seed=st.integers(0, 9),
    shuffle=st.sampled_from(["block", "none"]),
)
def test_buckets_keep_windows_and_sort_within(count, batch_size, window, seed, shuffle) -> None:
    rng = np.random.default_rng(seed)
    order, lengths, others = rng.permutation(count), rng.integers(1, 9, count), rng.integers(1, 9, count)
    found = bucketed(order, (lengths, others), batch_size, seed=seed, epoch=2, shuffle=shuffle, window=window)
    whole = count // batch_size * batch_size
    assert found[whole:].tolist() == order[whole:].tolist()
    for start in range(0, whole, batch_size * window):
        stop = min(whole, start + batch_size * window)
        place = {i: p for p, i in enumerate(order.tolist())}
        by_length = sorted(order[start:stop].tolist(), key=lambda i: (lengths[i], others[i], place[i]))
        batches = [by_length[k : k + batch_size] for k in range(0, stop - start, batch_size)]
        got = found[start:stop].reshape(-1, batch_size).tolist()
        assert (got if shuffle == "none" else sorted(got)) == (batches if shuffle == "none" else sorted(batches))


def test_batches_come_in_another_order_each_epoch(pairs) -> None:
    loader = Loader(pairs, global_batch_size=4, bucket=True)
    orders = {tuple(batch.sample_ids[0].item() for batch in loader.epoch(epoch)) for epoch in range(4)}
    assert len(orders) == 4


def test_lengths_are_part_of_the_fingerprint(tmp_path) -> None:
    write_pairs(tmp_path)
    first = Pairs.open(tmp_path).fingerprint
    with h5py.File(tmp_path / "part-0.h5", "r+") as file:
        file["source_length"][0] = 10
    assert Pairs.open(tmp_path).fingerprint != first


def test_a_steady_epoch_of_pairs_takes_no_memory_of_kernels(tmp_path) -> None:
    write_pairs(tmp_path, (400,))
    loader = Loader(Pairs.open(tmp_path), global_batch_size=16, bucket=True)
    for _ in loader.epoch(0):
        pass
    with counted_allocations() as count:
        number = sum(1 for _ in loader.epoch(1))
        assert count() <= 18 * number


@pytest.fixture
def wide(write_file) -> Pairs:
    """Return pairs of two and three tokens in rows of a million."""
    rows, lengths = np.zeros((4, 2**20), np.uint8), np.array([2, 3, 2, 2])
    rows[:, :3] = [1, 5, 2]
    arrays = {"source": rows, "target": rows, "source_length": lengths, "target_length": lengths}
    return Pairs.open(write_file("wide.h5", arrays, compression="gzip"))


def test_what_is_kept_for_a_batch_follows_the_lengths(wide) -> None:
    maker = PairMaker(wide, 2, reads_inputs=True, reads_targets=True)
    assert maker._positions.size == 4
    batch = maker.fill(maker.buffers(), np.arange(2), 0, 2, 0, None)
    assert batch.inputs[1].tolist() == [[1, 0, 0, 0], [1, 5, 0, 0]]


def test_rows_too_wide_for_the_memory_are_refused(wide, monkeypatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 2**22 - 1)
    maker = PairMaker(wide, 2, reads_inputs=True, reads_targets=True)
    message = r"not enough memory for pairs of .*wide\.h5, which are 1048576 and 1048576 wide\. .*Convert the pairs"
    with pytest.raises(InputError, match=message):
        maker.buffers()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": np.zeros((4, 3), np.float32)}, r"source: no pairs of token sequences\. Found .*float32"),
        (
            {"target": np.zeros((4, 3, 2), np.uint8)},
            r"target: no pairs .*shape \(3, 2\), uint8; .*\(length,\)",
        ),
        ({"target": np.zeros(4, np.uint8)}, r"target: no pairs of token sequences"),
        ({"source_length": np.zeros((4, 1), np.int32)}, r"source_length: no pairs .* expected integers of shape \(\)"),
        ({"source_length": np.array([1, 0, 3, 3])}, "length of sample 1 cannot be. Found 0; expected 1 to 3"),
        ({"target_length": np.array([2, 3, 4, 3])}, "length of sample 2 cannot be. Found 4; expected 2 to 3"),
        ({"target_length": np.array([2, 3, 3])}, "inputs and targets differ in number"),
        ({"target_length": None}, "no array 'target_length'"),
    ],
)
def test_arrays_that_are_no_pairs_are_refused(write_file, change, message: str) -> None:
    lengths = np.full(4, 3)
    arrays = {"source": np.ones((4, 3), np.uint8), "target": np.ones((4, 3), np.uint8)}
    arrays |= {"source_length": lengths, "target_length": lengths} | change
    path = write_file("a.h5", {name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(InputError, match=message):
        Pairs.open(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transform": Transform(scale=0.5)}, r"data\.transform: tokens are not transformed"),
        ({"augment": Augment(mixup=0.2)}, r"data\.augment: tokens are not augmented"),
        ({"target_transform": Transform()}, r"data\.target_transform: out of range"),
    ],
)
def test_what_would_change_pairs_is_refused(pairs, options, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Loader(pairs, global_batch_size=4, **options)


def test_other_samples_have_one_length(write_file) -> None:
    dataset = Dataset.open(write_file("a.h5", {"x": np.zeros((4, 3), np.uint8), "y": np.zeros(4, np.uint8)}))
    with pytest.raises(InputError, match=r"data\.bucket: .*these samples have one length"):
        Loader(dataset, global_batch_size=4, bucket=True)
