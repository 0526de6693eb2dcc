"""Two threads compute what one does, in another order of additions at most."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import numba
import numpy as np
import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.kernels.jit import thread_count
from hpdl_mpi.kernels.threads import available_cores, set_threads
from hpdl_mpi.nn import (
    GELU,
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    CrossEntropy,
    Dropout,
    Dropout2d,
    Flatten,
    GlobalAvgPool2d,
    GroupNorm,
    Layer,
    LayerNorm,
    Linear,
    MaxPool2d,
    ReLU,
    Residual,
    Sequential,
    SiLU,
    StochasticDepth,
)
from hpdl_mpi.optim import SGD
from hpdl_mpi.parallel.pipeline import Feed
from hpdl_mpi.parallel.replica import Replica
from tests.threads import needs_two_threads
from tests.unit.nn.cases import LAYERS
from tests.unit.nn.rig import AMPLIFICATION, Rig

RNG = np.random.default_rng(0)
BATCH = 5
X = RNG.normal(size=(BATCH, 9, 8, 2))
TARGETS = RNG.integers(10, size=BATCH)


def every_layer() -> Layer:
    return Sequential(
        *(Conv2d(4, 3, padding=1), GroupNorm(2), ReLU(), MaxPool2d(2)),
        *(Conv2d(4, 2), BatchNorm2d(activation="relu6"), GELU(), AvgPool2d(2)),
        *(AdaptiveAvgPool2d((2, 1)), Dropout(0.2), Dropout2d(0.1), Residual(StochasticDepth(0.4))),
        *(Flatten(), Linear(10), LayerNorm(), SiLU()),
    )


def every_convolution() -> Layer:
    """Return a network of the methods that have 8 channels or more, and of sums that normalisation makes."""
    body = Conv2d(9, 3, padding=1, bias=False), BatchNorm2d()
    narrow = Conv2d(10, 3, stride=2, padding=1, bias=False), BatchNorm2d()
    return Sequential(
        *(Conv2d(9, 5, padding=2), Residual(Sequential(*body), activation="relu")),
        *(Conv2d(9, 3, padding=1, groups=9), Conv2d(9, 3, padding=1, groups=3)),
        Residual(Sequential(*narrow), Conv2d(10, 1, stride=2), activation="relu"),
        *(GlobalAvgPool2d(), Linear(10)),
    )


def replica(make: Callable[[], Layer] = every_layer) -> Replica:
    return Replica(make(), X.shape[1:], SGD(0.1, momentum=0.9), dtype=np.float64, seed=0)


def train(one: Replica, *, batch: int = BATCH) -> np.ndarray:
    """Take three steps; return a copy of the parameters."""
    for epoch in range(3):
        one.learn(Feed(np.arange(batch), X[:batch], TARGETS[:batch], epoch, scale=1 / batch), CrossEntropy())
        one.update(lr=0.1, scale=1.0)
    return one.params.copy()


@needs_two_threads
@pytest.mark.parametrize("make", [every_layer, every_convolution])
@pytest.mark.parametrize("batch", [1, BATCH])
def test_two_threads_train_as_one_does(batch: int, make: Callable[[], Layer]) -> None:
    """A batch of one, which cannot be shared, and one that cannot be shared evenly.

    The threads' parts are added in another order: a few hundred terms of size 1 at most, rounded to 1.1e-16 each, and
    three steps of a rate of 0.1, which do not make them grow: 3e-14, and Winograd's transforms amplify that.
    """
    alone = train(replica(make), batch=batch)
    set_threads(2)
    together = train(replica(make), batch=batch)
    again = train(replica(make), batch=batch)
    np.testing.assert_allclose(together, alone, rtol=0, atol=AMPLIFICATION * 3e-14)
    np.testing.assert_array_equal(again, together)


@needs_two_threads
@pytest.mark.parametrize(
    "name",
    [
        *(
            "Conv2d, depthwise",
            "Conv2d, depthwise, uneven",
            "Conv2d, grouped, Winograd",
            "Conv2d, of one pixel, stride",
        ),
        *("Residual, whose sum BatchNorm2d makes", "Residual, whose sum BatchNorm2d makes, ReLU"),
    ],
)
def test_two_threads_give_outputs_and_gradients_of_inputs_to_the_bit(name: str) -> None:
    def run() -> tuple[np.ndarray, np.ndarray]:
        rig = Rig(LAYERS[name], np.float32)
        return rig.output(rig.x), rig.step(rig.x, rig.dy)

    alone = run()
    set_threads(2)
    for one, other in zip(run(), alone, strict=True):
        np.testing.assert_array_equal(one, other)


def test_replicas_of_one_process_do_not_disturb_each_other() -> None:
    """Kernels let go of Python's lock and keep nothing of their own: threads train side by side, to the bit."""
    expected = train(replica())
    replicas = [replica() for _ in range(4)]
    results: dict[int, np.ndarray] = {}
    start = threading.Barrier(len(replicas))

    def run(number: int) -> None:
        start.wait()
        results[number] = train(replicas[number])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(replicas))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(len(replicas)):
        np.testing.assert_array_equal(results[number], expected)


@needs_two_threads
def test_a_thread_beside_the_one_that_computes_takes_no_core_from_it() -> None:
    counts: list[int] = []
    set_threads(2)
    beside = threading.Thread(target=lambda: counts.append(thread_count()))
    beside.start()
    beside.join()
    assert [thread_count(), *counts] == [2, 1]


@pytest.mark.parametrize("count", [0, -1, 10_000])
def test_impossible_number_of_threads_is_refused(count: int) -> None:
    with pytest.raises(InputError) as caught:
        set_threads(count)
    most = numba.config.NUMBA_NUM_THREADS
    assert str(caught.value) == (
        f"parallel.threads: not a possible number of threads. Found {count}; expected 1 to {most}, the cores of this "
        "process or NUMBA_NUM_THREADS. Ask the launcher for more cores per rank, or lower parallel.threads."
    )
    assert thread_count() == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to cores")
def test_available_cores_are_those_that_this_process_is_bound_to() -> None:
    cores = os.sched_getaffinity(0)
    assert available_cores() == cores
    try:
        os.sched_setaffinity(0, {max(cores)})
        assert available_cores() == {max(cores)}
    finally:
        os.sched_setaffinity(0, cores)
