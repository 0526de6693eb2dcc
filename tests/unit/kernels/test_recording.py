"""Calls of kernels, recorded and made again."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from hpdl_mpi.kernels.elementwise import add, multiply
from hpdl_mpi.kernels.recording import recording, replayed
from hpdl_mpi.kernels.threads import set_threads


def test_kernels_run_again_on_what_their_arrays_hold_then() -> None:
    a, b, total, product = np.arange(4.0), np.ones(4), np.zeros(4), np.zeros(4)
    with recording() as recorded:
        add(a, b, total)
        multiply(total, a, product)
    np.testing.assert_array_equal(product, [0, 2, 6, 12])
    a[...] = 3
    recorded.replay()
    np.testing.assert_array_equal(total, 4)
    np.testing.assert_array_equal(product, 12)


def test_what_is_replayed_is_called_in_its_place_and_the_last_result_returned() -> None:
    a = np.zeros(1)

    def tenfold() -> float:
        multiply(a, np.full(1, 10.0), a)  # a kernel inside is not called once more
        return float(a[0])

    with recording() as recorded:
        add(a, np.ones(1), a)
        assert replayed(tenfold) == 10
    assert recorded.replay() == 110
    assert replayed(tenfold) == 1100, "nothing is noted outside of a recording"
    assert recorded.replay() == 11010


def test_an_error_ends_a_recording_and_a_replay() -> None:
    values = np.ones(2)

    def check(limit: float) -> None:
        if values[0] > limit:
            raise ValueError("too large")

    with pytest.raises(ValueError, match="too large"), recording():
        replayed(check, 0.0)
    with recording() as recorded:
        replayed(check, 1.0)
        add(values, values, values)
    np.testing.assert_array_equal(values, 2)
    with pytest.raises(ValueError, match="too large"):
        recorded.replay()
    np.testing.assert_array_equal(values, 2)


def test_other_threads_do_not_write_into_it() -> None:
    a = np.ones(1)
    with recording() as recorded:
        other = threading.Thread(target=add, args=(a, a, a))
        other.start()
        other.join()
        add(a, np.ones(1), a)
    recorded.replay()
    np.testing.assert_array_equal(a, 4)


def test_it_keeps_the_form_of_a_kernel_that_the_number_of_threads_asks_for() -> None:
    a = np.ones(3)
    set_threads(2)
    try:
        with recording() as recorded:
            add(a, a, a)
    finally:
        set_threads(1)
    ((form, _),) = recorded._calls
    assert form is add.parallel
    recorded.replay()
    np.testing.assert_array_equal(a, 4)
