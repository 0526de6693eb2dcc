"""Windows whose tokens are hidden: what a model sees and is to predict, on any ranks, in training and evaluation."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpdl_mpi.base.errors import BadSample, InputError
from hpdl_mpi.data import Augment, Batch, Dataset, Loader, Masking, Transform, Windows
from hpdl_mpi.kernels.jit import counted_allocations

VOCABULARY, CONTEXT = 60, 8
MASKING = Masking(mask=2, vocabulary=VOCABULARY, rate=0.4)
IGNORED = -1


@pytest.fixture(scope="module")
def windows(tmp_path_factory) -> Windows:
    """Return 24 windows of random tokens; some are specials, 0 to 2."""
    path = tmp_path_factory.mktemp("masking") / "text.h5"
    with h5py.File(path, "w") as file:
        tokens = np.random.default_rng(0).integers(VOCABULARY, size=24 * CONTEXT + 1)
        file.create_dataset("tokens", data=tokens.astype(np.uint8), chunks=(32,))
    return Windows.open(path, context=CONTEXT)


def loader(windows: Windows, **changes) -> Loader:
    return Loader(windows, **({"global_batch_size": 5, "tokens": True, "masking": MASKING} | changes))


def by_sample(windows: Windows, epoch: int = 0, **changes) -> dict[int, tuple[list[int], list[int]]]:
    """Return inputs and targets of all samples of an epoch."""
    return {
        int(number): (x.tolist(), y.tolist())
        for batch in loader(windows, **changes).epoch(epoch)
        for number, x, y in zip(batch.sample_ids, batch.inputs, batch.targets, strict=True)
    }


def stored(windows: Windows, batch: Batch) -> np.ndarray:
    tokens = np.empty((batch.sample_ids.size, CONTEXT), np.uint8)
    windows.read(batch.sample_ids, tokens, None)
    return tokens


def test_what_is_hidden_is_the_target_and_all_else_stays(windows) -> None:
    reader = loader(windows)
    assert reader.input_shape == reader.target_shape == (CONTEXT,)
    chosen = 0
    for batch in reader.epoch(0):
        tokens = stored(windows, batch)
        assert batch.inputs.dtype == batch.targets.dtype == reader.target_dtype == np.int64
        wanted = batch.targets != IGNORED
        assert np.array_equal(batch.targets[wanted], tokens[wanted])
        assert np.array_equal(batch.inputs[~wanted], tokens[~wanted])
        assert not wanted[tokens < MASKING.num_specials].any()
        changed = batch.inputs[batch.inputs != tokens]
        assert set(changed.tolist()) <= {MASKING.mask, *range(MASKING.num_specials, VOCABULARY)}
        chosen += int(wanted.sum())
    assert 0.3 < chosen / (24 * CONTEXT) < 0.5


def test_training_masks_anew_in_each_epoch_and_by_its_seed(windows) -> None:
    first = by_sample(windows, seed=3)
    assert first == by_sample(windows, seed=3)
    assert first != by_sample(windows, epoch=1, seed=3)
    assert first != by_sample(windows, seed=4)


def test_evaluation_masks_the_same_tokens_always(windows) -> None:
    first = by_sample(windows, training=False, seed=3)
    assert first == by_sample(windows, epoch=1, training=False, seed=4, global_batch_size=7, shuffle="none")
    assert first != by_sample(windows, seed=3)


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(1, 5), batch=st.integers(1, 9), done=st.integers(0, 3), training=st.booleans())
def test_every_world_size_masks_alike_and_goes_on_from_any(windows, size, batch, done, training) -> None:
    def epoch(rank: int, size: int, offset: int) -> list[np.ndarray]:
        reader = loader(windows, global_batch_size=batch, dp_rank=rank, dp_size=size, training=training)
        return [np.stack([one.inputs, one.targets], axis=1) for one in reader.epoch(2, offset=offset)]

    offset = min(done * batch, 24)
    alone = epoch(0, 1, 0)[-(-offset // batch) :]
    shares = zip(*(epoch(rank, size, offset) for rank in range(size)), strict=True)
    assert [np.concatenate(share).tolist() for share in shares] == [one.tolist() for one in alone]


@pytest.mark.parametrize(("inputs", "targets"), [(True, False), (False, True), (False, False)])
def test_a_rank_of_a_pipeline_gets_what_it_needs(windows, inputs: bool, targets: bool) -> None:
    whole = next(loader(windows).epoch(0))
    reader = loader(windows, reads_inputs=inputs, reads_targets=targets)
    part = next(reader.epoch(0))
    assert np.array_equal(part.sample_ids, whole.sample_ids)
    assert part.inputs.tolist() == whole.inputs.tolist() if inputs else part.inputs is None
    assert part.targets.tolist() == whole.targets.tolist() if targets else part.targets is None
    assert (reader.nbytes > 0) == (inputs or targets)


def test_a_steady_epoch_allocates_no_array(windows) -> None:
    reader = loader(windows)
    for epoch in range(2):
        for _ in reader.epoch(epoch):
            pass
    with counted_allocations() as count:
        number = sum(1 for _ in reader.epoch(2))
        assert count() <= 13 * number


def test_a_token_outside_of_the_vocabulary_is_named_with_its_sample(windows) -> None:
    reader = loader(windows, masking=Masking(mask=1, vocabulary=5))
    with pytest.raises(BadSample, match=r"data\.masking\.vocabulary: a token is outside the vocabulary"):
        for _ in reader.epoch(0):
            pass


def test_specials_are_the_mask_and_all_below_unless_said() -> None:
    assert Masking(mask=2, vocabulary=9) == Masking(mask=np.int64(2), vocabulary=np.int64(9), specials=3)
    assert Masking(mask=2, vocabulary=9, specials=5).num_specials == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": -1}, r"masking\.mask: out of range\. Found -1"),
        ({"mask": True}, r"masking\.mask: out of range\. Found True"),
        ({"specials": 2}, r"masking\.specials: .*Found 2; expected an integer above the mask, 2"),
        ({"specials": 2.5}, r"masking\.specials: .*Found 2\.5"),
        ({"vocabulary": 3}, r"masking\.vocabulary: .*Found 3; expected an integer above 3, the number of specials"),
        ({"rate": 0}, r"masking\.rate: .*Found 0; expected a number above 0, at most 1"),
        ({"rate": 1.5}, r"masking\.rate: .*Found 1\.5"),
        ({"rate": float("nan")}, r"masking\.rate: .*Found nan"),
    ],
    ids=str,
)
def test_numbers_that_cannot_be_are_refused(changes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Masking(**({"mask": 2, "vocabulary": 9} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transform": Transform(scale=0.5)}, r"data\.transform: tokens are not transformed"),
        ({"augment": Augment(mixup=0.2)}, r"data\.augment: tokens are not augmented"),
        ({"target_transform": Transform()}, r"data\.target_transform: .*expected none"),
        ({"bucket": True}, r"data\.bucket: .*these samples have one length"),
    ],
    ids=["transform", "augment", "target_transform", "bucket"],
)
def test_what_would_change_tokens_is_refused(windows, changes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        loader(windows, **changes)


def test_values_are_not_masked(tmp_path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"], file["y"] = np.zeros((4, 3)), np.zeros(4, np.int64)
    with pytest.raises(InputError, match=r"a\.h5: data\.inputs: the model reads tokens\. Found .* float64"):
        loader(Dataset.open(tmp_path / "a.h5"))
