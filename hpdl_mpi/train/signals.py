"""Signals that end a run with a checkpoint, once all ranks have agreed on it."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from hpdl_mpi.base.errors import HpdlError

_ONE_SIGNAL_SECONDS = 1.0


class Stopped(HpdlError):
    """The run was asked to stop, and has stopped in order: every rank raises it."""

    def __init__(self, number: int, step: int, saved: object) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name} after step {step}",
            remedy=f"The checkpoint {saved} holds the run: continue with --resume" if saved else "Nothing was saved",
            shared=True,
        )
        self.exit_code = 128 + number


class StopSignals:
    """Notes Ctrl-C, SIGTERM and one more signal, instead of ending the process. The same once more ends it at once.

    A launcher may hand on what the terminal has sent already, so what comes within a second counts as one.

    Parameters
    ----------
    extra : str
        Name of the further signal.
    """

    def __init__(self, extra: str) -> None:
        self.numbers = (signal.SIGINT, signal.SIGTERM, signal.Signals[extra])
        self._noted: dict[int, float] = {}
        self._before: dict[int, Any] = {}

    def flags(self) -> tuple[bool, ...]:
        """Which of `numbers` this rank was sent."""
        return tuple(number in self._noted for number in self.numbers)

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            for number in self.numbers:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if time.monotonic() - self._noted.setdefault(number, time.monotonic()) > _ONE_SIGNAL_SECONDS:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            signal.raise_signal(number)
