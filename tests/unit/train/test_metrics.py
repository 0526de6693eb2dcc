"""Sums become the numbers that people read."""

from __future__ import annotations

import math

import pytest

from hpdl_mpi import nn
from hpdl_mpi.nn import LossSums
from hpdl_mpi.train.metrics import Meter, Metrics
from hpdl_mpi.train.report import describe_summary

SUMS = LossSums(loss=6.0, weight=4.0, score=1.0, top5=3.0)


@pytest.mark.parametrize(
    ("meter", "expected", "text"),
    [
        (Meter("classification", 6), Metrics(1.5, accuracy=0.25, top5=0.75), "loss 1.5000  accuracy 0.2500  top5 0.75"),
        (Meter("classification", 5), Metrics(1.5, accuracy=0.25), "loss 1.5000  accuracy 0.2500"),
        (Meter("regression", 6, 10.0), Metrics(1.5, rmse=5.0), "loss 1.5000  rmse 5"),
        (Meter("regression", 6), Metrics(1.5), "loss 1.5000"),
    ],
    ids=lambda value: repr(value),
)
def test_metrics_are_means_that_the_task_has(meter: Meter, expected: Metrics, text: str) -> None:
    assert meter(SUMS) == expected
    assert str(meter(SUMS)).startswith(text)
    assert meter.names == [name for name, value in vars(expected).items() if value is not None]


def test_no_samples_have_no_metrics() -> None:
    metrics = Meter("classification", 9)(LossSums(0.0, 0.0, 0.0))
    assert not metrics.finite
    assert math.isnan(metrics.top5)


def test_meter_knows_the_classes_of_a_model() -> None:
    assert Meter.of(nn.CrossEntropy(), (7, 12), None) == Meter("classification", 12)
    assert Meter.of(nn.MeanSquaredError(), (), 2.0) == Meter("regression", 1, 2.0)


@pytest.mark.parametrize(("count", "text"), [(1, "1 step on 1 rank: done"), (2, "2 steps on 2 ranks: done")])
def test_what_there_is_one_of_is_not_said_in_the_plural(count, text):
    scores = dict.fromkeys(("test_loss", "test_accuracy", "test_top5", "test_rmse", "samples_per_second"))
    assert describe_summary(scores | {"steps": count, "world_size": count}) == text
