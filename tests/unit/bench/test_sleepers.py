"""What sleeps in a model's place has its parameters, and takes its time."""

from __future__ import annotations

import time

import numpy as np

from hpdl_mpi import optim
from hpdl_mpi.bench.sleepers import Sleep, asleep
from hpdl_mpi.models import MODELS
from hpdl_mpi.nn import CrossEntropy
from hpdl_mpi.parallel import Replica
from hpdl_mpi.parallel.pipeline import Feed

SECONDS = 0.06


def test_it_has_the_models_parameters_and_sleeps_as_long_as_it_is_told() -> None:
    model = asleep(MODELS["lenet"](), (28, 28, 1), SECONDS)
    replica = Replica(model, (10,), optim.SGD(0.1), dtype="float32", seed=0)
    whole = Replica(MODELS["lenet"](), (28, 28, 1), optim.SGD(0.1), dtype="float32", seed=0)
    assert replica.num_parameters == whole.num_parameters
    x = np.ones((4, 10), np.float32)
    started = time.perf_counter()
    replica.learn(Feed(np.arange(4), x, np.zeros(4, np.int64)), CrossEntropy())
    # Nobody wants the gradient of the first layer's input, which is less than a third of all.
    assert time.perf_counter() - started >= SECONDS * 2 / 3
    assert not replica.grads.any()
    np.testing.assert_array_equal(replica.predict(x, np.arange(4)), x)


def test_layers_sleep_by_their_operations() -> None:
    layers = [layer for layer in asleep(MODELS["mlp"](), (784,), 1.0).children.values() if isinstance(layer, Sleep)]
    sizes = np.array([layer._num_parameters for layer in layers])
    seconds = np.array([layer._seconds for layer in layers])
    np.testing.assert_allclose(seconds.sum(), 1.0, rtol=1e-12)
    # A fully connected layer takes two operations for each weight; biases are few.
    np.testing.assert_allclose(seconds, sizes / sizes.sum(), rtol=0.01)
