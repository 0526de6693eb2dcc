from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data.transform import Transform

RNG = np.random.default_rng(0)
TINY = float(np.finfo(np.float64).smallest_normal)


def naive(transform: Transform, raw: np.ndarray) -> np.ndarray:
    """Do what the documentation says, in float64."""
    values = raw.astype(np.float64)
    if transform.layout == "hw":
        values = values[..., None]
    if transform.layout == "chw":
        values = values.transpose(0, 2, 3, 1)
    mean = 0.0 if transform.mean is None else np.asarray(transform.mean)
    std = 1.0 if transform.std is None else np.asarray(transform.std)
    return (values * transform.scale - mean) / std


CASES = [
    (Transform(), (4,)),
    (Transform(), ()),
    (Transform(scale=1 / 255, mean=0.1307, std=0.3081), (5, 4, 1)),
    (Transform(scale=1 / 255, mean=[0.5, 0.4, 0.3], std=(0.2, 0.3, 0.4)), (5, 4, 3)),
    (Transform(scale=1 / 255, mean=[0.5], std=[0.25]), (5, 4, 3)),
    (Transform(mean=[1, 2, 3, 4], std=[1, 2, 3, 4]), (4,)),
    (Transform(mean=3.0, std=2.0), ()),
    (Transform(scale=2.0, mean=0.5, layout="hw"), (5, 4)),
    (Transform(scale=1 / 255, mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4], layout="chw"), (3, 5, 4)),
    (Transform(scale=1 / 255, mean=0.5, layout="chw"), (3, 5, 4)),
]


@pytest.mark.parametrize(("transform", "shape"), CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_apply_matches_the_naive_twin(transform: Transform, shape: tuple[int, ...], dtype: type) -> None:
    raw = RNG.integers(0, 256, (7, *shape)).astype(np.uint8)
    out = np.full((7, *transform.output_shape(shape)), np.nan, dtype)
    transform.apply(raw, out)
    expected = naive(transform, raw)
    # One rounding of the result, and three of float64 that cancellation against the mean may enlarge: inputs reach 256.
    np.testing.assert_allclose(out, expected, rtol=np.finfo(dtype).eps, atol=256 * 8 * np.finfo(np.float64).eps)


@pytest.mark.parametrize(
    "raw_dtype", [np.bool_, np.int8, np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64]
)
def test_apply_takes_every_type_of_number(raw_dtype: type) -> None:
    raw = RNG.integers(0, 2, (3, 4)).astype(raw_dtype)
    out = np.empty((3, 4), np.float32)
    Transform(scale=2.0, mean=1.0).apply(raw, out)
    assert np.array_equal(out, raw.astype(np.float32) * 2 - 1)


def test_a_large_mean_costs_no_digits() -> None:
    raw = np.array([[1_000_001.0]], np.float32)
    out = np.empty((1, 1), np.float32)
    Transform(mean=1e6, std=3.0).apply(raw, out)
    assert out[0, 0] == np.float32(1 / 3)


@pytest.mark.parametrize(("transform", "shape"), CASES)
def test_a_batch_without_samples_is_taken_and_writes_nothing(transform: Transform, shape: tuple[int, ...]) -> None:
    memory = np.full((1, *transform.output_shape(shape)), 7.0, np.float32)
    transform.apply(np.empty((0, *shape), np.uint8), memory[:0])
    transform.inverse(memory[:0])
    assert (memory == 7.0).all()


@settings(max_examples=50, deadline=None)
@given(st.floats(0.01, 100), st.floats(-1e3, 1e3), st.floats(0.01, 1e3), st.lists(st.floats(-1e6, 1e6), min_size=1))
@example(scale=1.01, mean=0.0, std=18.0, values=[TINY, TINY / 2**52])
@example(scale=0.01, mean=TINY / 2**52, std=1e3, values=[TINY / 2**52])
def test_inverse_undoes_apply(scale: float, mean: float, std: float, values: list[float]) -> None:
    transform = Transform(scale=scale, mean=[mean], std=[std])
    raw = np.array(values)[:, None]
    out = np.empty_like(raw)
    transform.apply(raw, out)
    transform.inverse(out)
    # Six roundings; those of the subtraction are relative to the larger of its terms.
    rounding = 8 * np.finfo(np.float64).eps * (np.abs(raw) + abs(mean) / scale)
    # What falls below the smallest normal number may be lost whole: the product with the scale, the difference, the
    # quotient, the product with std, the sum, the result. The map back multiplies the third by std, and divides all
    # but the last by the scale.
    underflow = TINY * (1 + (4 + std) / scale)
    assert np.all(np.abs(out - raw) <= rounding + underflow)


def test_inverse_works_per_feature_in_place() -> None:
    transform = Transform(mean=[10.0, 20.0], std=[2.0, 4.0])
    values = np.array([[0.0, 1.0], [-1.0, 0.5]], np.float32)
    transform.inverse(values)
    assert values.tolist() == [[10.0, 24.0], [8.0, 22.0]]


def test_lists_become_tuples_so_that_equal_transforms_are_equal_and_hashable() -> None:
    assert Transform(mean=[1, 2]) == Transform(mean=(1.0, 2.0))
    assert hash(Transform(mean=[1, 2])) == hash(Transform(mean=(1.0, 2.0)))


def test_numbers_and_arrays_of_numpy_are_taken_as_plain_numbers() -> None:
    given = Transform(scale=np.float32(2), mean=np.float32(1), std=np.array([1, 2]))
    assert given == Transform(scale=2.0, mean=1.0, std=(1.0, 2.0))
    assert [type(value) for value in (given.scale, given.mean, given.std)] == [float, float, tuple]


@pytest.mark.parametrize(
    ("transform", "shape", "message"),
    [
        (
            Transform(layout="hw"),
            (3, 4, 1),
            r"transform.layout: .*samples of shape \(3, 4, 1\); expected \(height, width\)",
        ),
        (Transform(layout="chw"), (3, 4), r"transform.layout: .*expected \(channels, height, width\)"),
        (
            Transform(mean=[1, 2]),
            (5, 5, 3),
            r"transform.mean: .*\(5, 5, 3\).*2 values; expected 1 or 3, one per channel",
        ),
        (Transform(std=[1, 2]), (3,), r"transform.std: .*2 values; expected 1 or 3, one per feature"),
        (Transform(mean=[1, 2], layout="chw"), (3, 5, 2), "expected 1 or 3, one per channel"),
    ],
)
def test_a_transform_that_does_not_fit_says_which_shape_would(
    transform: Transform, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        transform.output_shape(shape)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"scale": 0.0}, r"transform\.scale: out of range\. Found 0\.0; expected a finite number, not 0"),
        ({"scale": float("nan")}, "transform.scale"),
        ({"mean": [0.0, float("inf")]}, "transform.mean: out of range"),
        ({"mean": float("nan")}, "transform.mean: out of range. Found nan; expected a finite number"),
        ({"mean": ()}, r"transform.mean: out of range. Found \(\); expected a finite number, or one per feature"),
        ({"std": []}, r"transform.std: out of range. Found \[\]"),
        ({"mean": [[1.0, 2.0]]}, r"transform.mean: out of range. Found \[\[1.0, 2.0\]\]"),
        ({"std": 0.0}, "transform.std: out of range.*1 for one that does not vary"),
        ({"std": [1.0, -1.0]}, "transform.std"),
        ({"mean": "3"}, "transform.mean: out of range. Found '3'; expected a finite number, or one per feature"),
        ({"mean": b"3"}, "transform.mean: out of range. Found b'3'"),
        ({"mean": True}, "transform.mean: out of range. Found True"),
        ({"std": ["3"]}, r"transform.std: out of range. Found \['3'\]"),
        ({"std": np.array([True])}, "transform.std: out of range"),
        ({"layout": np.array([3, 3])}, "transform.layout: out of range"),
        ({"layout": "nchw"}, "transform.layout: out of range. Found 'nchw'; expected hwc, hw or chw"),
        ({"standardize": "yes"}, "transform.standardize: out of range. Found 'yes'; expected true or false"),
        ({"standardize": True, "mean": 1.0}, "transform.standardize: .*Remove standardize, or mean and std"),
    ],
)
def test_impossible_keys_are_refused(keys: dict, message: str) -> None:
    with pytest.raises(InputError, match=f"(?i){message}"):
        Transform(**keys)


def test_a_transform_that_is_not_measured_cannot_be_applied() -> None:
    with pytest.raises(ValueError, match="not measured yet"):
        Transform(standardize=True).apply(np.zeros((1, 2)), np.zeros((1, 2)))
