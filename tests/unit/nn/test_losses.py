"""Losses: sums with their weights, and gradients in the same pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.nn import Context, CrossEntropy, Huber, Loss, LossSums, MeanSquaredError, MicroBatch, Pool
from tests import reference as ref
from tests.unit.nn.test_layers import DIFFERENCES, differences

RNG = np.random.default_rng(0)
CLASSES = np.array([3, 0, 1, 3])
VALUES = RNG.normal(size=(4, 5))


class Row(NamedTuple):
    loss: Loss
    targets: np.ndarray
    twin: Callable[[np.ndarray, np.ndarray], float]


LOSSES = {
    "cross-entropy": Row(CrossEntropy(), CLASSES, ref.cross_entropy),
    "cross-entropy, smoothed": Row(CrossEntropy(0.1), CLASSES, lambda o, t: ref.cross_entropy(o, t, 0.1)),
    "squared error": Row(MeanSquaredError(), VALUES, ref.squared_error),
    "Huber": Row(Huber(), VALUES, lambda o, t: ref.huber(o, t, 1.0)),
    "Huber, narrow": Row(Huber(0.25), VALUES, lambda o, t: ref.huber(o, t, 0.25)),
}
every_loss = pytest.mark.parametrize("row", LOSSES.values(), ids=LOSSES.keys())


def evaluate(
    loss: Loss, outputs: np.ndarray, targets: np.ndarray, *, scale: float = 1.0, training: bool = True
) -> tuple[LossSums, Any]:
    pool = Pool(poison=True)
    batch = MicroBatch(pool)
    batch.begin(np.arange(len(outputs)), training=training)
    sums, gradient = loss(outputs, targets, scale, Context(batch))
    assert (pool.bytes_live > 0) == (gradient is not None)
    return sums, gradient


@pytest.fixture
def outputs() -> np.ndarray:
    return np.random.default_rng(1).normal(scale=2.0, size=(4, 5))


@every_loss
def test_loss_is_that_of_the_naive_twin(row: Row, outputs: np.ndarray) -> None:
    sums, _ = evaluate(row.loss, outputs, row.targets)
    assert sums.loss == pytest.approx(row.twin(outputs, row.targets), rel=1e-14)
    assert sums.weight == 4


@every_loss
def test_gradient_is_scale_times_that_of_finite_differences(row: Row, outputs: np.ndarray) -> None:
    _, gradient = evaluate(row.loss, outputs, row.targets, scale=0.25)
    expected = 0.25 * differences(lambda: row.twin(outputs, row.targets), outputs)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=DIFFERENCES)


@every_loss
def test_parts_of_a_batch_add_up(row: Row, outputs: np.ndarray) -> None:
    whole, gradient = evaluate(row.loss, outputs, row.targets)
    parts = [evaluate(row.loss, outputs[s], row.targets[s]) for s in (slice(0, 1), slice(1, 1), slice(1, 4))]
    np.testing.assert_allclose(np.sum([sums for sums, _ in parts], axis=0), whole, rtol=1e-14)
    np.testing.assert_array_equal(np.concatenate([part for _, part in parts]), gradient)


@every_loss
def test_evaluation_makes_no_gradient(row: Row, outputs: np.ndarray) -> None:
    sums, gradient = evaluate(row.loss, outputs, row.targets, training=False)
    assert gradient is None
    assert sums == evaluate(row.loss, outputs, row.targets)[0]


@every_loss
def test_outputs_and_targets_are_only_read(row: Row, outputs: np.ndarray) -> None:
    before = outputs.copy(), row.targets.copy()
    evaluate(row.loss, outputs, row.targets)
    np.testing.assert_array_equal(outputs, before[0])
    np.testing.assert_array_equal(row.targets, before[1])


@every_loss
def test_nan_in_the_outputs_is_seen_in_the_loss(row: Row, outputs: np.ndarray) -> None:
    outputs[2, 4] = np.nan
    assert np.isnan(evaluate(row.loss, outputs, row.targets)[0].loss)


@every_loss
def test_single_precision_agrees_with_double(row: Row, outputs: np.ndarray) -> None:
    single = outputs.astype(np.float32)
    targets = row.targets if row.targets.dtype == np.int64 else row.targets.astype(np.float32)
    sums, gradient = evaluate(row.loss, single, targets)
    exact, exact_gradient = evaluate(row.loss, single.astype(float), targets.astype(row.targets.dtype))
    assert gradient.dtype == np.float32
    # Terms of size 1 to 10, some ten operations each, rounded to 6e-8.
    np.testing.assert_allclose(sums, exact, rtol=1e-5)
    np.testing.assert_allclose(gradient, exact_gradient, rtol=0, atol=1e-5)


def test_score_of_a_classifier_is_how_often_the_largest_output_is_the_target() -> None:
    outputs = np.array([[1.0, 3.0, 2.0], [4.0, 4.0, 0.0], [4.0, 4.0, 0.0], [0.0, 1.0, 2.0]])
    sums, _ = evaluate(CrossEntropy(), outputs, np.array([1, 0, 1, 0]))
    # right; the first of equal ones, right; not the first, wrong; wrong
    assert sums.score == 2


def test_classes_among_the_five_likeliest_are_counted() -> None:
    outputs = np.array([[7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 2.0]])
    found = [evaluate(CrossEntropy(), outputs, np.array([target]))[0].top5 for target in range(7)]
    assert found == [1, 1, 1, 1, 1, 0, 0]
    tied = np.array([[1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.0]])  # of equal ones the first come first, as in argmax
    assert [evaluate(CrossEntropy(), tied, np.array([target]))[0].top5 for target in (1, 5, 0)] == [1, 1, 0]
    assert evaluate(CrossEntropy(), np.full((1, 7), np.nan), np.array([0]))[0].top5 == 0


def test_top5_agrees_with_a_sorted_list() -> None:
    outputs, targets = RNG.integers(0, 6, size=(200, 12)).astype(float), RNG.integers(12, size=200)
    likeliest = [sorted(range(12), key=lambda j, row=row: (-row[j], j))[:5] for row in outputs]
    expected = sum(target in five for target, five in zip(targets, likeliest, strict=True))
    assert evaluate(CrossEntropy(), outputs, targets)[0].top5 == expected


def test_what_is_reported_is_not_smoothed(outputs: np.ndarray) -> None:
    sums, _ = evaluate(CrossEntropy(0.3).plain(), outputs, CLASSES)
    assert sums.loss == pytest.approx(ref.cross_entropy(outputs, CLASSES), rel=1e-14)
    for loss in (CrossEntropy(), MeanSquaredError(), Huber()):
        assert loss.plain() is loss


def test_row_with_nan_is_not_classified_rightly() -> None:
    outputs = np.array([[np.nan, np.nan, np.nan], [5.0, np.nan, 0.0], [5.0, 0.0, 0.0]])
    assert evaluate(CrossEntropy(), outputs, np.array([0, 0, 0]))[0].score == 1


def test_score_of_a_regression_is_the_squared_error(outputs: np.ndarray) -> None:
    for loss in (MeanSquaredError(), Huber(0.25)):
        assert evaluate(loss, outputs, VALUES)[0].score == pytest.approx(ref.squared_error(outputs, VALUES), rel=1e-14)


def test_tokens_of_sequences_count_one_by_one() -> None:
    outputs, targets = RNG.normal(size=(2, 3, 5)), RNG.integers(5, size=(2, 3))
    sums, gradient = evaluate(CrossEntropy(), outputs, targets)
    flat, flat_gradient = evaluate(CrossEntropy(), outputs.reshape(6, 5), targets.reshape(6))
    assert sums == flat
    assert sums.weight == 6
    np.testing.assert_array_equal(gradient.reshape(6, 5), flat_gradient)


def test_cross_entropy_of_large_logits_is_finite() -> None:
    sums, gradient = evaluate(CrossEntropy(), np.array([[1e4, -1e4], [-1e4, 1e4]]), np.array([0, 0]))
    assert sums.loss == 2e4
    np.testing.assert_array_equal(gradient, [[0.0, 0.0], [-1.0, 1.0]])


def test_impossible_class_does_not_spoil_the_loss_of_the_others() -> None:
    sums, gradient = evaluate(CrossEntropy(), np.array([[0.0, 0.0, -np.inf]]), np.array([1]))
    assert sums.loss == pytest.approx(np.log(2.0), rel=1e-15)
    np.testing.assert_allclose(gradient, [[0.5, -0.5, 0.0]], rtol=1e-15)


@pytest.mark.parametrize("label", [-1, 5, 2**40])
def test_label_outside_the_classes_is_refused(outputs: np.ndarray, label: int) -> None:
    with pytest.raises(InputError) as caught:
        evaluate(CrossEntropy(), outputs, np.array([0, 4, label, 1]))
    assert str(caught.value) == (
        f"data.targets: a label is outside the classes. Found {label}; expected 0 to 4, since the model has 5 outputs. "
        "Mend the labels, give the model an output for each class, or name one that does not count "
        "(training.loss.ignore_index)."
    )


@pytest.mark.parametrize(
    ("loss", "output_shape", "target_shape", "dtype", "message"),
    [
        (
            CrossEntropy(),
            (10,),
            (),
            np.float32,
            "cross_entropy takes class numbers. Found float32; expected an integer or bool dtype",
        ),
        (CrossEntropy(), (10,), (1,), np.int64, r"do not fit the model's outputs. Found \(1,\); expected \(\)"),
        (CrossEntropy(), (3, 10), (4,), np.int64, r"Found \(4,\); expected \(3,\)"),
        (MeanSquaredError(), (2,), (3,), np.float32, r"do not fit the model's outputs. Found \(3,\); expected \(2,\)"),
        (Huber(), (1,), (3,), np.float32, r"Found \(3,\); expected \(1,\)"),
        (MeanSquaredError(), (3, 2), (2, 3), np.float32, r"Found \(2, 3\); expected \(3, 2\)"),
        (MeanSquaredError(), (6,), (2, 3), np.float32, r"Found \(2, 3\); expected \(6,\)"),
    ],
)
def test_targets_that_do_not_fit_are_refused(
    loss: Loss, output_shape: tuple, target_shape: tuple, dtype: type, message: str
) -> None:
    with pytest.raises(InputError, match=rf"^data\.targets: .*{message}"):
        loss.check(output_shape, target_shape, np.dtype(dtype))


@pytest.mark.parametrize(
    ("loss", "output_shape", "target_shape", "dtype", "weight"),
    [
        (CrossEntropy(), (10,), (), np.uint8, 4),
        (CrossEntropy(), (2,), (), np.bool_, 4),
        (CrossEntropy(), (3, 10), (3,), np.int64, 12),
        (MeanSquaredError(), (1,), (), np.float32, 4),
        (MeanSquaredError(), (3,), (3, 1), np.float32, 4),
        (Huber(), (2, 3), (2, 3), np.float64, 4),
    ],
)
def test_targets_that_fit_are_taken_and_counted(
    loss: Loss, output_shape: tuple, target_shape: tuple, dtype: type, weight: int
) -> None:
    loss.check(output_shape, target_shape, np.dtype(dtype))
    sums, gradient = evaluate(loss, np.zeros((4, *output_shape)), np.zeros((4, *target_shape), dtype))
    assert sums.weight == weight
    assert gradient.shape == (4, *output_shape)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CrossEntropy(1.0), "label_smoothing: out of range. Found 1.0; expected 0 to below 1."),
        (lambda: CrossEntropy(np.nan), "label_smoothing: out of range. Found nan; expected 0 to below 1."),
        (lambda: Huber(0.0), "delta: out of range. Found 0.0; expected a number above 0."),
        (lambda: Huber(np.nan), "delta: out of range. Found nan; expected a number above 0."),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], Loss], message: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value) == message
