"""Signals: noted once, obeyed when they come again."""

from __future__ import annotations

import signal

import pytest

from hpdl_mpi.train import signals
from hpdl_mpi.train.signals import StopSignals


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is set."""
    now = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    return now


def test_a_signal_is_noted_and_its_echo_ignored(clock):
    with StopSignals("SIGUSR1") as stop:
        assert stop.flags() == (False, False, False)
        signal.raise_signal(signal.SIGINT)
        clock[0] += 0.5
        signal.raise_signal(signal.SIGINT)
        assert stop.flags() == (True, False, False)


def test_a_signal_that_comes_again_is_obeyed(clock):
    with StopSignals("SIGUSR1"):
        signal.raise_signal(signal.SIGINT)
        clock[0] += 2.0
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
