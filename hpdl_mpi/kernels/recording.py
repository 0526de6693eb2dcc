"""Calls of kernels, recorded once and made again: what Python decides between them is decided once.

A step on a small model is as many short kernels as its layers have, and Python takes a tenth of its time to find out
which arrays each of them reads and writes. For another batch of the same shapes it finds out the same. So the calls are
kept, with their arguments, and made again on new contents of the same arrays, as CUDA graphs do it on a GPU.

What a recording keeps is calls of parallel kernels, which enter themselves, and of what is called by way of `replayed`.
Anything else that Python computes meanwhile is computed once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Recording:
    """Calls in their order; it holds the arrays among their arguments."""

    def __init__(self) -> None:
        self._calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def add(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Note a call, whose arguments are to be what they are now."""
        self._calls.append((function, arguments))

    def replay(self) -> Any:
        """Make the calls again; return what the last one returns."""
        result = None
        for function, arguments in self._calls:
            result = function(*arguments)
        return result


class _Current(threading.local):
    """Where the calls of this Python thread are noted."""

    recording: Recording | None = None


current = _Current()


@contextmanager
def recording() -> Iterator[Recording]:
    """Record the calls that this thread makes inside the context, on one recording at a time."""
    assert current.recording is None, "one recording at a time"
    current.recording = made = Recording()
    try:
        yield made
    finally:
        current.recording = None


def replayed(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function of Python returns, which is called again in its place in every replay.

    So it may look at the contents of arrays, which differ from batch to batch, and raise. Kernels that it calls are
    not noted beside it.
    """
    into, current.recording = current.recording, None
    try:
        result = function(*arguments)
    finally:
        current.recording = into
    if into is not None:
        into.add(function, arguments)
    return result
