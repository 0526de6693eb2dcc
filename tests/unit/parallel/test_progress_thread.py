"""The thread beside the one that computes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from hpdl_mpi.parallel.progress_thread import ProgressThread

DEADLINE = 10.0


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end
        time.sleep(1e-3)


def test_it_calls_inside_the_context_alone_and_never_when_somebody_has_the_lock() -> None:
    lock, calls = threading.Lock(), []
    thread = ProgressThread(lambda: calls.append(threading.current_thread().name), lock)
    for _ in range(3):
        with thread.running():
            before = len(calls)
            until(lambda before=before: len(calls) > before + 2)
            with lock:
                held = len(calls)
                time.sleep(0.02)
                assert len(calls) == held
        left = len(calls)
        time.sleep(0.02)
        assert len(calls) == left
    assert {*calls} == {"progress"}
    thread.end()
    assert all(thread.name != "progress" for thread in threading.enumerate())


def test_what_a_call_raises_is_raised_where_the_context_ends() -> None:
    calls = []

    def fail() -> None:
        calls.append(1)
        raise ArithmeticError("no link")

    thread = ProgressThread(fail, threading.Lock())

    def run() -> None:
        with thread.running():
            until(lambda: bool(calls))
            time.sleep(0.02)

    with pytest.raises(ArithmeticError, match="no link"):
        run()
    assert len(calls) == 1
    thread.end()


def test_an_error_of_the_rank_itself_comes_first() -> None:
    thread = ProgressThread(lambda: None, threading.Lock())
    with pytest.raises(KeyError), thread.running():
        raise KeyError("layer")
    thread.end()
