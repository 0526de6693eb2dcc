"""The thread beside the one that computes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from hpdl_mpi.parallel.progress_thread import progress_thread

DEADLINE = 10.0


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end
        time.sleep(1e-3)


def test_it_calls_inside_the_context_alone_and_never_when_somebody_has_the_lock() -> None:
    lock, calls = threading.Lock(), []
    with progress_thread(lambda: calls.append(threading.current_thread().name), lock):
        until(lambda: len(calls) > 2)
        with lock:
            held = len(calls)
            time.sleep(0.02)
            assert len(calls) == held
        until(lambda: len(calls) > held)
    left = len(calls)
    time.sleep(0.02)
    assert len(calls) == left
    assert {*calls} == {"progress"}
    assert all(thread.name != "progress" for thread in threading.enumerate())


def test_what_a_call_raises_is_raised_where_the_context_ends() -> None:
    calls = []

    def fail() -> None:
        calls.append(1)
        raise ArithmeticError("no link")

    def run() -> None:
        with progress_thread(fail, threading.Lock()):
            until(lambda: bool(calls))
            time.sleep(0.02)

    with pytest.raises(ArithmeticError, match="no link"):
        run()
    assert len(calls) == 1


def test_an_error_of_the_rank_itself_comes_first() -> None:
    with pytest.raises(KeyError), progress_thread(lambda: None, threading.Lock()):
        raise KeyError("layer")
    assert all(thread.name != "progress" for thread in threading.enumerate())
