"""A thread that moves messages along while their rank computes.

MPI libraries move what goes over a network inside their calls alone. A rank that calls them between layers only leaves
the link idle for most of a layer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SECONDS = 3e-3
"""Between calls. The buffers of a link hold what it takes in that time; more calls cost what they gain."""


class ProgressThread:
    """Calls a function every few milliseconds, while it is let.

    Parameters
    ----------
    move : callable
        Called with the lock held.
    lock : Lock
        Of what `move` works on; others hold it while they do.
    """

    def __init__(self, move: Callable[[], object], lock: threading.Lock) -> None:
        self._move, self._lock = move, lock
        self._running, self._ended = threading.Event(), False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let it call inside the context, which raises what a call has raised; afterwards no call goes on."""
        self._running.set()
        try:
            yield
        finally:
            with self._lock:
                self._running.clear()
        if self._error:
            raise self._error

    def end(self) -> None:
        """End the thread."""
        self._ended = True
        self._running.set()
        self._thread.join()

    def _run(self) -> None:
        while self._running.wait() and not self._ended:
            time.sleep(_SECONDS)
            with self._lock:
                # The context may have been left since.
                if self._running.is_set() and not self._error:
                    try:
                        self._move()
                    except BaseException as error:  # noqa: BLE001 - raised again in the rank's own thread
                        self._error = error
