"""Loaders that augment: the pixels of the naive twins, whatever the ranks, and what cannot be augmented."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data import Augment, Dataset, Jitter, Loader, Transform
from hpdl_mpi.data.prepare import Preparation
from hpdl_mpi.kernels.random import derive_key
from tests import augment_reference as ref
from tests.unit.data.test_loader import allocated_by_batches

SCALE, MEAN, STD = 1 / 255, 0.4, 0.3
TRANSFORM = Transform(scale=SCALE, mean=MEAN, std=STD)
SHAPE = (12, 10, 3)
COLORS = Jitter(0.4, 0.3, 0.2, 0.1)

AUGMENTS = {
    "flip": Augment(flip=True),
    "crop": Augment(crop=8),
    "padded crop": Augment(crop=(12, 10), pad=2, flip=True),
    "larger crop": Augment(crop=(13, 11), pad=1),
    "resized crop": Augment(resized_crop=(6, 7), flip=True),
    "enlarged": Augment(resized_crop=20),
    "jitter": Augment(jitter=COLORS),
    "cutout": Augment(cutout=5),
    "all": Augment(flip=True, resized_crop=9, jitter=COLORS, cutout=4),
}
every_augment = pytest.mark.parametrize("augment", AUGMENTS.values(), ids=AUGMENTS)


def loader_of(dataset: Dataset, augment: Augment, **options) -> Loader:
    options = {"global_batch_size": 8, "seed": 3, "transform": TRANSFORM, "dtype": np.float64} | options
    return Loader(dataset, augment=augment, **options)


def samples(loader: Loader, epoch: int, **options) -> dict[int, tuple[np.ndarray, object]]:
    """Return inputs and target of every sample of an epoch."""
    found = {}
    for batch in loader.epoch(epoch, **options):
        for sample_id, x, y in zip(batch.sample_ids.tolist(), batch.inputs, batch.targets, strict=True):
            found[sample_id] = x.copy(), y.tolist()
    return found


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[i][0], other[i][0]) and one[i][1] == other[i][1] for i in one)


def twin(image: np.ndarray, augment: Augment, epoch: int, sample_id: int, white: float = 255.0) -> np.ndarray:
    key = derive_key("augment", 3, epoch)
    return ref.augmented(image, augment, key, sample_id, scale=SCALE, mean=MEAN, std=STD, white=white)


@pytest.fixture
def stored(write_shards):
    folder, x, y = write_shards([13, 9, 11], sample=SHAPE)
    return Dataset.open(folder), x, y


@every_augment
def test_every_sample_is_that_of_the_naive_twin(stored, augment):
    dataset, x, y = stored
    loader = loader_of(dataset, augment)
    for epoch in (0, 1):
        for sample_id, (found, target) in samples(loader, epoch).items():
            expected = twin(x[sample_id], augment, epoch, sample_id)
            assert found.shape == expected.shape == loader.input_shape
            assert target == y[sample_id]
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@every_augment
def test_float32_differs_by_its_rounding_alone(stored, augment):
    dataset, _, _ = stored
    exact, found = (samples(loader_of(dataset, augment, dtype=dtype), 0) for dtype in (np.float64, np.float32))
    for sample_id, (x, _) in found.items():
        assert x.dtype == np.float32
        # Colours are rounded thrice; each may be stretched by 1.4^3, the turn of the hue makes six times as much of it.
        np.testing.assert_allclose(x, exact[sample_id][0], rtol=0, atol=3 * 1.4**3 * 6 / STD * 2.0**-24)


@pytest.mark.parametrize("layout", ["chw", "hw"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_every_layout_and_type_of_image_is_taken(write_file, layout, dtype):
    rng = np.random.default_rng(0)
    shape = (6, 3, 12, 10) if layout == "chw" else (6, 12, 10)
    x = rng.integers(0, 256, shape).astype(dtype)
    dataset = Dataset.open(write_file("a.h5", {"x": x, "y": np.zeros(6, np.uint8)}))
    jitter = COLORS if layout == "chw" else Jitter(0.4, 0.3)
    images = x.transpose(0, 2, 3, 1) if layout == "chw" else x[..., None]
    for augment in (Augment(flip=True, crop=8, jitter=jitter), Augment(resized_crop=8, jitter=jitter)):
        loader = loader_of(dataset, augment, transform=Transform(SCALE, MEAN, STD, layout=layout))
        for sample_id, (found, _) in samples(loader, 0).items():
            np.testing.assert_allclose(found, twin(images[sample_id], augment, 0, sample_id), rtol=0, atol=1e-12)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(list(AUGMENTS)), st.integers(1, 4), st.integers(2, 20), st.booleans())
def test_samples_are_the_same_on_every_number_of_ranks(stored, name, dp_size, batch_size, mixes):
    dataset, _, _ = stored
    augment = Augment(**vars(AUGMENTS[name]) | {"mixup": 0.5 if mixes else None})
    alone = samples(loader_of(dataset, augment, global_batch_size=batch_size), 1)
    shared: dict = {}
    for rank in range(dp_size):
        shared |= samples(loader_of(dataset, augment, global_batch_size=batch_size, dp_rank=rank, dp_size=dp_size), 1)
    assert_same(shared, alone)


@every_augment
def test_samples_are_the_same_in_batches_of_any_size_and_order(stored, augment):
    dataset, _, _ = stored
    expected = samples(loader_of(dataset, augment), 0)
    assert_same(samples(loader_of(dataset, augment, global_batch_size=5, shuffle="none"), 0), expected)
    late = samples(loader_of(dataset, augment), 0, offset=8)
    assert len(late) == 25
    assert_same(late, {i: expected[i] for i in late})


@every_augment
def test_another_epoch_and_another_seed_draw_anew(stored, augment):
    dataset, _, _ = stored
    one = samples(loader_of(dataset, augment, shuffle="none"), 0)
    for other in (
        samples(loader_of(dataset, augment, shuffle="none"), 1),
        samples(loader_of(dataset, augment, shuffle="none", seed=4), 0),
    ):
        assert sum(not np.array_equal(one[i][0], other[i][0]) for i in one) > 5


@every_augment
def test_what_is_not_to_learn_from_is_cropped_in_the_middle_and_nothing_else(stored, augment):
    dataset, x, _ = stored
    augment = Augment(**vars(augment) | {"mixup": 0.5})
    loader = loader_of(dataset, augment, training=False)
    for sample_id, (found, target) in samples(loader, 1).items():
        expected = (ref.middle(x[sample_id].astype(float), augment) * SCALE - MEAN) / STD
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)
        assert isinstance(target, int)


def test_the_middle_is_what_other_tools_take():
    """256 pixels to 224 of them: Resize(256) and CenterCrop(224) of torchvision take 16 off each side."""
    image = np.random.default_rng(0).integers(0, 256, (1, 256, 256, 1)).astype(np.uint8)
    out = np.empty((1, 224, 224, 1))
    Preparation(Transform(), Augment(resized_crop=224), image.shape[1:], np.uint8, 1).apply(image, out)
    assert np.array_equal(out, image[:, 16:240, 16:240])


def test_mixup_is_that_of_the_naive_twin(stored):
    dataset, x, y = stored
    plain, augment = Augment(flip=True), Augment(flip=True, mixup=0.4)
    order, key = dataset.order(3, 1), derive_key("augment", 3, 1)
    found = samples(loader_of(dataset, augment, global_batch_size=9), 1)
    for slot, one in enumerate(order.tolist()):
        start = slot - slot % 9
        place = (slot - start) ^ 1
        other = int(order[start + place]) if start + place < min(start + 9, 33) else one
        part = ref.part(key, one, 0.4)
        expected = part * twin(x[one], plain, 1, one) + (1 - part) * twin(x[other], plain, 1, other)
        np.testing.assert_allclose(found[one][0], expected, rtol=0, atol=1e-12)
        label, second, weight = found[one][1]
        assert (label, second) == (y[one], y[other])
        assert weight == pytest.approx(part if other != one else 1.0, rel=1e-12)
        if slot < 18:
            assert (other == one) == (slot % 9 == 8)


def test_mixup_mixes_values_as_it_does_samples(write_file):
    values = np.random.default_rng(0).normal(size=(7, 3))
    dataset = Dataset.open(write_file("a.h5", {"x": 2 * values, "y": values}))
    for rank in range(2):
        loader = Loader(dataset, augment=Augment(mixup=1.0), global_batch_size=7, dp_rank=rank, dp_size=2, dtype="f8")
        for batch in loader.epoch(0):
            np.testing.assert_allclose(batch.inputs, 2 * batch.targets, rtol=1e-14)
            assert not np.array_equal(batch.targets, values[batch.sample_ids])


def test_a_rank_amid_a_pipeline_and_one_at_its_ends_agree(stored):
    dataset, _, _ = stored
    augment = Augment(mixup=0.3, crop=8)
    whole = list_of(loader_of(dataset, augment))
    first, last = (loader_of(dataset, augment, **{f"reads_{one}": False}) for one in ("targets", "inputs"))
    for both, x, y in zip(whole, list_of(first), list_of(last), strict=True):
        assert np.array_equal(both[0], x[0])
        assert np.array_equal(both[1], y[1])


def list_of(loader: Loader) -> list[tuple]:
    return [tuple(None if a is None else a.copy() for a in (b.inputs, b.targets)) for b in loader.epoch(0)]


@pytest.mark.parametrize("window", [{"crop": 28, "pad": 4}, {"resized_crop": 24}])
def test_a_steady_epoch_that_augments_allocates_no_array_per_batch(write_shards, window):
    folder, _, _ = write_shards([1200], sample=(32, 32, 3), x_chunk=100, y_chunk=100)
    augment = Augment(flip=True, jitter=COLORS, cutout=8, mixup=0.2, **window)
    loader = Loader(Dataset.open(folder), global_batch_size=100, transform=TRANSFORM, augment=augment)
    peak, blocks = allocated_by_batches(loader, 6)
    # An array of 100 draws has 8800 bytes; the rest is room for views, tuples and messages of the queue.
    assert peak < 8800
    # Numba wraps the arrays that are handed to kernels: 2 x 7 for the gathers, 4 x 2 to draw, at most 8 for the window,
    # 4 for the colours, 2 for cutout, and 2 + 3 + 3 + 4 for mixup; the thread is at most three batches ahead.
    assert blocks <= 9 * (14 + 8 + 8 + 4 + 2 + 12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": 0}, r"augment\.crop: out of range\. Found 0; expected an integer of 1 to 32768, or two"),
        ({"crop": (8, 8, 8)}, r"augment\.crop: out of range"),
        ({"resized_crop": (8, 0)}, r"augment\.resized_crop: out of range"),
        ({"crop": 8, "resized_crop": 8}, "augment.crop and resized_crop: both say how images are cropped"),
        ({"pad": 4}, r"augment\.pad: a border is for what is cropped\. Give augment\.crop"),
        ({"crop": 8, "pad": -1}, r"augment\.pad: out of range"),
        (
            {"crop": (12, 8), "pad": 8},
            r"augment\.pad: a window could lie in the border alone\. Found 8; .* the crop, 8",
        ),
        ({"crop": 2**63}, r"augment\.crop: out of range"),
        ({"cutout": 2**63}, r"augment\.cutout: out of range"),
        ({"central_fraction": 0.0}, r"augment\.central_fraction: out of range"),
        ({"central_fraction": 1.1}, r"augment\.central_fraction: out of range"),
        ({"cutout": 0}, r"augment\.cutout: out of range"),
        ({"central_fraction": 0.9}, r"augment\.central_fraction: it says .* Give augment\.resized_crop"),
        ({"crop": 8, "central_fraction": 0.9}, r"augment\.central_fraction: it says"),
        ({"crop": 4, "pad": 1.5}, r"augment\.pad: out of range\. Found 1\.5; expected an integer of 0 to 32768"),
        ({"crop": 4, "pad": None}, r"augment\.pad: out of range\. Found None"),
        ({"crop": 4, "pad": True}, r"augment\.pad: out of range"),
        ({"crop": True}, r"augment\.crop: out of range\. Found True"),
        ({"crop": (4, True)}, r"augment\.crop: out of range"),
        ({"crop": 4.0}, r"augment\.crop: out of range"),
        ({"resized_crop": "8"}, r"augment\.resized_crop: out of range"),
        ({"cutout": 2.5}, r"augment\.cutout: out of range\. Found 2\.5; expected an integer of 1 to 32768"),
        ({"cutout": True}, r"augment\.cutout: out of range"),
        ({"flip": 1}, r"augment\.flip: out of range\. Found 1; expected true or false"),
        ({"jitter": 0.4}, r"augment\.jitter: out of range\. Found 0\.4; expected a Jitter"),
        ({"mixup": True}, r"augment\.mixup: out of range"),
        ({"mixup": "0.2"}, r"augment\.mixup: out of range"),
        ({"central_fraction": None}, r"augment\.central_fraction: out of range"),
        ({"mixup": 0.0}, r"augment\.mixup: out of range\. Found 0\.0; expected a number of 0.001 to 1"),
        ({"mixup": 1.5}, r"augment\.mixup: out of range"),
        ({"mixup": float("nan")}, r"augment\.mixup: out of range"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Augment(**settings)


def test_numbers_of_numpy_become_those_of_python():
    one, half = np.int64(1), np.float32(0.5)
    found = Augment(crop=(one * 4, 5), pad=one, cutout=one, mixup=half, jitter=Jitter(half))
    assert found == Augment(crop=(4, 5), pad=1, cutout=1, mixup=0.5, jitter=Jitter(0.5))
    assert json.loads(json.dumps(asdict(found)))["crop"] == [4, 5]
    assert Augment(resized_crop=one) == Augment(resized_crop=1)
    assert Augment(resized_crop=np.array([4, 5])) == Augment(resized_crop=(4, 5))


@pytest.mark.parametrize("settings", [{}, {"crop": 8}, {"resized_crop": (12, 8)}])
def test_a_cutout_leaves_something_of_an_image(settings):
    Augment(cutout=8, **settings).output_shape((8, 10, 3))
    with pytest.raises(
        InputError, match=r"data\.augment\.cutout: nothing could be left .* Found 9; expected at most 8"
    ):
        Augment(cutout=9, **settings).output_shape((8, 10, 3))


@pytest.mark.parametrize(
    "settings", [{"hue": 0.6}, {"hue": "0.1"}, {"brightness": -0.1}, {"contrast": float("inf")}, {"saturation": True}]
)
def test_impossible_colours_are_refused(settings):
    with pytest.raises(InputError, match=rf"augment\.jitter\.{next(iter(settings))}: out of range"):
        Jitter(**settings)


@pytest.mark.parametrize(
    ("augment", "shape", "message"),
    [
        (
            Augment(crop=(15, 8), pad=1),
            SHAPE,
            "here: images are smaller than the crop. Found 12 x 10 pixels (height x width), and a border of 1; "
            "expected at least 15 x 8 pixels in all. "
            "Lower data.augment.crop, raise data.augment.pad, or take data.augment.resized_crop",
        ),
        (
            Augment(crop=11),
            SHAPE,
            "here: images are smaller than the crop. Found 12 x 10 pixels (height x width); expected",
        ),
        (Augment(flip=True), (12, 10), r"here: only images can be augmented. Found samples of shape (12, 10)"),
        (Augment(jitter=COLORS), (12, 10, 1), "here: these colours cannot change"),
        (Augment(jitter=Jitter(contrast=0.1)), (12, 10, 2), "here: these colours cannot change"),
    ],
)
def test_samples_that_cannot_be_augmented_are_refused(augment, shape, message):
    with pytest.raises(InputError) as caught:
        augment.output_shape(shape, "here")
    assert str(caught.value).startswith(message)
    assert caught.value.exit_code == 2


def test_a_batch_of_one_cannot_be_mixed(stored):
    with pytest.raises(InputError, match=r"global_batch_size: out of range\. Found 1; expected 2 or more samples"):
        loader_of(stored[0], Augment(mixup=0.2), global_batch_size=1)
