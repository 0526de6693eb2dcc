"""Cross-entropy with targets of two classes, as mixup makes them."""

from __future__ import annotations

import numpy as np
import pytest

from hpdl_mpi.base.errors import BadSample
from hpdl_mpi.kernels.mixup import MIXED
from hpdl_mpi.nn import CrossEntropy
from tests import reference as ref
from tests.unit.nn.test_layers import DIFFERENCES, differences
from tests.unit.nn.test_losses import evaluate

TARGETS = np.array([(3, 0, 0.25), (0, 0, 0.6), (1, 4, 1.0), (2, 3, 0.0)], MIXED)
every_smoothing = pytest.mark.parametrize("smoothing", [0.0, 0.2])


def twin(outputs: np.ndarray, smoothing: float) -> float:
    return sum(
        part * ref.cross_entropy(row[None], np.array([label]), smoothing)
        + (1 - part) * ref.cross_entropy(row[None], np.array([other]), smoothing)
        for row, (label, other, part) in zip(outputs, TARGETS, strict=True)
    )


@pytest.fixture
def outputs() -> np.ndarray:
    return np.random.default_rng(1).normal(scale=2.0, size=(4, 5))


@every_smoothing
def test_loss_and_gradient_are_those_of_both_classes_by_their_parts(outputs, smoothing):
    sums, gradient = evaluate(CrossEntropy(smoothing), outputs, TARGETS, scale=0.25)
    assert sums.loss == pytest.approx(twin(outputs, smoothing), rel=1e-14)
    assert sums.weight == 4
    expected = 0.25 * differences(lambda: twin(outputs, smoothing), outputs)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=DIFFERENCES)
    assert evaluate(CrossEntropy(smoothing), outputs, TARGETS, training=False) == (sums, None)


@every_smoothing
def test_targets_of_one_class_are_those_of_plain_labels(outputs, smoothing):
    labels = TARGETS["label"].copy()
    whole = np.array([(label, label, 1.0) for label in labels], MIXED)
    found, gradient = evaluate(CrossEntropy(smoothing), outputs, whole)
    expected, wanted = evaluate(CrossEntropy(smoothing), outputs, labels)
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    np.testing.assert_allclose(gradient, wanted, rtol=0, atol=1e-15)


def test_a_prediction_is_right_for_the_part_of_its_class():
    outputs = np.array([[0, 0, 0, 2, 0], [3, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 5, 5, 0.0]])
    # the first class; the one class; the other class, of which there is nothing; the first of equal ones, likewise
    assert evaluate(CrossEntropy(), outputs, TARGETS)[0].score == pytest.approx(0.25 + 1.0 + 0.0 + 0.0)
    assert np.isnan(evaluate(CrossEntropy(), outputs * np.nan, TARGETS)[0].loss)
    assert evaluate(CrossEntropy(), outputs * np.nan, TARGETS)[0].score == 0


def test_a_class_is_near_for_its_part_when_it_is_among_the_five_largest():
    outputs = np.array([[7, 6, 5, 4, 3, 3, 1.0], [7, 6, 5, 4, 3, 3, 1]])
    targets = np.array([(4, 5, 0.75), (6, 0, 0.75)], MIXED)  # the first of equal ones is near, the second is not
    assert evaluate(CrossEntropy(), outputs, targets)[0].top5 == pytest.approx(0.75 + 0.25)


def test_an_impossible_class_does_not_spoil_the_loss():
    targets = np.array([(0, 2, 1.0)], MIXED)
    assert evaluate(CrossEntropy(), np.array([[0.0, 0.0, -np.inf]]), targets)[0].loss == pytest.approx(np.log(2))


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("label", "data.targets: a label is outside the classes. Found 5; expected 0 to 4"),
        ("other", "data.targets: is mixed with a sample whose label is outside the classes. Found 5; expected 0 to 4"),
    ],
)
def test_a_label_outside_the_classes_is_named_with_whose_it_is(outputs, key, what):
    targets = TARGETS.copy()
    targets[key][2] = 5
    if key == "label":
        targets["other"][1] = 7  # a sample's own label is told first, for its file is known
    with pytest.raises(BadSample) as caught:
        evaluate(CrossEntropy(), outputs, targets)
    assert str(caught.value).startswith(what)
    assert caught.value.sample == 2
