"""A thread that moves messages along while their rank computes.

MPI libraries move what goes over a network inside their calls alone. A rank that calls them between layers only leaves
the link idle for most of a layer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SECONDS = 3e-3
"""Between calls. The buffers of a link hold what it takes in that time; more calls cost what they gain."""


@contextmanager
def progress_thread(move: Callable[[], object], lock: threading.Lock) -> Iterator[None]:
    """Call a function every few milliseconds inside the context, from a thread that lives as long.

    Parameters
    ----------
    move : callable
        Called with the lock held. What it raises is raised where the context ends, and it is not called again.
    lock : Lock
        Of what `move` works on; others hold it while they do.
    """
    ended = threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            while not ended.wait(_SECONDS):
                with lock:
                    move()
        except BaseException as error:  # noqa: BLE001 - raised again in the rank's own thread
            errors.append(error)

    thread = threading.Thread(target=run, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if errors:
        raise errors[0]
