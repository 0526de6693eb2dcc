"""Optimizer kernels round alike in both forms; what they compute is tested with the optimizers."""

from __future__ import annotations

import numpy as np
import pytest

from hpdl_mpi.kernels import update
from hpdl_mpi.kernels.jit import ParallelKernel
from hpdl_mpi.optim.optimizer import no_terms

BOUNDS = np.array([[0, 4096], [4096, 4099], [4099, 4100], [4101, 9000], [9000, 9000], [9003, 20_000]])
"""Chunks with and without a rest after vectors of any length, and with gaps."""

DECAYS = np.array([1.0, 0.0, 1.0, 1.0, 1.0, 0.0])

RATES = np.array([1.0, 0.5, 1.0, 0.25, 1.0, 3.0])

DECAY = 0.999

UPDATES: list[tuple[ParallelKernel, int, tuple]] = [
    (update.sgd, 0, (DECAYS, 0.1, 0.01, 0.02, 0.03)),
    (update.momentum, 1, (DECAYS, 0.1, 0.01, 0.02, 0.03, 0.9, False, RATES)),
    (update.momentum, 1, (DECAYS, 0.1, 0.01, 0.02, 0.03, 0.9, True, RATES)),
    (update.adam, 2, (DECAYS, 0.1, 0.01, 0.02, False, 0.9, 0.999, 1e-8, 3)),
    (update.adam, 2, (DECAYS, 0.1, 0.01, 0.02, True, 0.9, 0.999, 1e-8, 3)),
    (update.adam_direction, 2, (DECAYS, 0.1, 0.02, 0.9, 0.999, 1e-8, 3)),
    (update.follow, 0, (RATES, 0.01)),
]
NAMES = ["sgd", "momentum", "nesterov", "adam", "adamw", "adam_direction", "follow"]


SUMMING = ("sgd", "momentum", "nesterov", "adam", "adamw")
"""Kernels that take terms, by `NAMES`."""


def numbers(count: int, dtype: str) -> list[np.ndarray]:
    """Return arrays of positive numbers of many magnitudes: second moments are positive too."""
    rng = np.random.default_rng(count)
    return [np.exp(rng.normal(0.0, 3.0, BOUNDS.max())).astype(dtype) for _ in range(count)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("kernel", "num_slots", "settings"), UPDATES, ids=NAMES)
def test_update_gives_the_same_bits_from_one_thread_as_from_several(
    kernel: ParallelKernel, num_slots: int, settings: tuple, dtype: str
) -> None:
    serial, parallel = numbers(2 + num_slots, dtype), numbers(2 + num_slots, dtype)
    if kernel in (update.sgd, update.momentum, update.adam):
        settings = (*settings, no_terms(dtype))
    kernel.serial(*serial, BOUNDS, *settings)
    kernel.parallel(*parallel, BOUNDS, *settings)
    for one, other in zip(serial, parallel, strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", ["serial", "parallel"])
@pytest.mark.parametrize("own", [0, 2])
@pytest.mark.parametrize(("kernel", "num_slots", "settings"), UPDATES[: len(SUMMING)], ids=SUMMING)
def test_update_sums_what_other_ranks_have_and_zeroes_it(
    kernel: ParallelKernel, num_slots: int, settings: tuple, own: int, form: str, dtype: str
) -> None:
    first = 96
    rows = np.ones((3, first + BOUNDS.max() + 5), dtype)
    here = slice(first, first + BOUNDS.max())
    rows[:, here] = numbers(3, dtype)
    terms = rows[:, here].copy()
    params, *slots = numbers(1 + num_slots, dtype)
    expected, *kept = numbers(1 + num_slots, dtype)
    whole = terms[own] + terms[(own + 1) % 3] + terms[(own + 2) % 3]
    run = getattr(kernel, form)
    run(params, rows[own, here], *slots, BOUNDS, *settings, update.Terms(rows, own, first))
    run(expected, whole, *kept, BOUNDS, *settings, no_terms(dtype))
    for one, other in zip([params, *slots], [expected, *kept], strict=True):
        assert one.tobytes() == other.tobytes()
    inside = np.concatenate([np.arange(start, stop) for start, stop in BOUNDS])
    assert not rows[:, here][:, inside].any()
    outside = np.setdiff1d(np.arange(BOUNDS.max()), inside)
    np.testing.assert_array_equal(rows[:, here][:, outside], terms[:, outside])
    assert np.all(rows[:, :first] == 1)
    assert np.all(rows[:, here.stop :] == 1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_moving_average_has_the_same_bits_from_one_thread_as_from_several(dtype: str) -> None:
    averages, values = numbers(2, dtype)
    serial, parallel = averages.copy(), averages.copy()
    update.average.serial(serial, values, BOUNDS, 1.0 - DECAY)
    update.average.parallel(parallel, values, BOUNDS, 1.0 - DECAY)
    assert serial.tobytes() == parallel.tobytes()
    expected = DECAY * averages.astype(float) + (1.0 - DECAY) * values
    inside = np.concatenate([np.arange(start, stop) for start, stop in BOUNDS])
    outside = np.setdiff1d(np.arange(BOUNDS.max()), inside)
    # Three roundings, of terms no larger than the larger of both numbers.
    bound = 3 * np.finfo(dtype).eps * np.maximum(averages, values)
    assert np.all(np.abs(serial - expected)[inside] <= bound[inside])
    np.testing.assert_array_equal(serial[outside], averages[outside])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sum_of_squares_has_the_same_bits_from_one_thread_as_from_several(dtype: str) -> None:
    (x,) = numbers(1, dtype)
    serial, parallel = np.empty(len(BOUNDS)), np.empty(len(BOUNDS))
    update.sum_squares.serial(x, BOUNDS, serial)
    update.sum_squares.parallel(x, BOUNDS, parallel)
    assert serial.tobytes() == parallel.tobytes()
    for (start, stop), total in zip(BOUNDS, serial, strict=True):
        # Of n positive terms, each rounded once and added in n - 1 steps: n half units of the last place at most.
        expected = np.square(x[start:stop], dtype=np.longdouble).sum()
        assert abs(total - expected) <= (stop - start) * np.finfo(np.float64).eps / 2 * expected
