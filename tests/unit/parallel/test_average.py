"""The moving average of weights: its numbers, and who sees it."""

from __future__ import annotations

import numpy as np
import pytest

from hpdl_mpi import nn, optim
from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import SingleCommunicator
from hpdl_mpi.data import Batch
from hpdl_mpi.parallel import ProcessGrid, Replica, TrainingStep
from tests import reference as ref

DECAY = 0.9
STEPS = 6


def make_replica(ema: float | None = DECAY) -> Replica:
    model = nn.Sequential(nn.Conv2d(3, 3), nn.BatchNorm2d(activation="relu"), nn.Flatten(), nn.Linear(4))
    return Replica(model, (5, 5, 2), optim.SGD(0.1, momentum=0.9), dtype=np.float64, seed=0, ema=ema)


def batch(number: int, size: int = 8) -> Batch:
    rng = np.random.default_rng(number)
    inputs, targets = rng.normal(size=(size, 5, 5, 2)), rng.integers(4, size=size)
    return Batch(inputs, targets, np.arange(size), global_size=size, offset=0)


def learn(replica: Replica) -> list[tuple[np.ndarray, np.ndarray]]:
    """Take some steps and return parameters and statistics after each."""
    step = TrainingStep(replica, nn.CrossEntropy(), ProcessGrid(SingleCommunicator(), {"pp": 1, "dp": 1}))
    seen = []
    for number in range(STEPS):
        step(batch(number), epoch=0, lr=0.1)
        seen.append((replica.params.copy(), replica.statistics.copy()))
    return seen


def test_average_of_parameters_and_statistics_is_that_of_the_naive_twin() -> None:
    replica = make_replica()
    params, statistics = zip(*learn(replica), strict=True)
    # Every step's rounding is some 1e-16 of numbers of size one.
    np.testing.assert_allclose(replica.average.params, ref.moving_averages(params, DECAY)[-1], rtol=0, atol=1e-14)
    np.testing.assert_allclose(
        replica.average.statistics, ref.moving_averages(statistics, DECAY)[-1], rtol=0, atol=1e-14
    )
    assert not np.allclose(replica.average.params, replica.params)


def test_average_changes_nothing_of_the_training() -> None:
    averaged, plain = make_replica(), make_replica(None)
    learn(averaged)
    learn(plain)
    np.testing.assert_array_equal(averaged.params, plain.params)
    np.testing.assert_array_equal(averaged.statistics, plain.statistics)
    assert plain.average is None


def test_layers_have_the_average_inside_the_context_only() -> None:
    replica, twin = make_replica(), make_replica(None)
    learn(replica)
    np.copyto(twin.params, replica.average.params)
    np.copyto(twin.statistics, replica.average.statistics)
    samples, ids = batch(99).inputs, np.arange(8)
    before = replica.predict(samples, ids)
    with replica.averaged():
        np.testing.assert_array_equal(replica.predict(samples, ids), twin.predict(samples, ids))
    np.testing.assert_array_equal(replica.predict(samples, ids), before)
    with pytest.raises(KeyError), replica.averaged():
        raise KeyError
    np.testing.assert_array_equal(replica.predict(samples, ids), before)
    assert not np.allclose(before, twin.predict(samples, ids))


def test_reset_starts_the_average_anew() -> None:
    replica = make_replica()
    learn(replica)
    replica.reset()
    np.testing.assert_array_equal(replica.average.params, replica.params)
    np.testing.assert_array_equal(replica.average.statistics, replica.statistics)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, float("nan"), 1, "0.9"])
def test_impossible_decays_are_refused(decay: object) -> None:
    with pytest.raises(InputError, match=r"^training\.ema: out of range"):
        make_replica(decay)
