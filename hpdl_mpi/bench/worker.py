"""The contender's side: ``python -m hpdl_mpi.bench.worker MODULE:FUNCTION SETTINGS DESCRIPTOR``.

The function is called with the settings (JSON) as keywords. It imports all that its contender needs, sets its threads
and returns a function that builds the `Subject`; memory counts from between these two.

The descriptor is the contender's end of a two-way pipe on which both sides write lines of JSON. When it has warmed up,
the worker says ``{"step_seconds": ..., "num_parameters": ...}``. Each ``{"steps": n}`` that it then reads is a turn,
answered by ``{"seconds": ..., "peak_bytes": ...}``; further keys are keywords of its steps. Between turns it is blocked
in that read. It leaves when the other end is closed. A failure is a traceback on standard error and an exit code.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from hpdl_mpi.bench import memory
from hpdl_mpi.bench.subject import Subject

_WARMUP_STEPS = 3


def serve(load: Callable[..., Callable[[], Subject]], settings: dict[str, Any], pipe: socket.socket) -> None:
    """Warm up, then take a turn for each request until there are no more.

    Parameters
    ----------
    load : callable
        Takes the settings as keywords, imports, and returns what builds the subject.
    settings : dict
    pipe : socket
    """
    build = load(**settings)
    level = memory.resident()
    subject = build()
    warm = min(_seconds(subject.step, 1) for _ in range(_WARMUP_STEPS))
    memory.reset_peak()
    _say(pipe, step_seconds=warm, num_parameters=subject.num_parameters)
    for request in pipe.makefile("rb"):
        keywords = json.loads(request)
        steps = keywords.pop("steps")
        step = partial(subject.step, **keywords)
        step()  # untimed: the others have had the caches to themselves
        seconds = _seconds(step, steps)
        _say(pipe, seconds=seconds, peak_bytes=memory.peak() - level)


def _seconds(step: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        step()
    return time.perf_counter() - start


def _say(pipe: socket.socket, **message: float) -> None:
    pipe.sendall(json.dumps(message).encode() + b"\n")


def main(arguments: Sequence[str]) -> None:
    """Be the contender that the command line describes."""
    loader, settings, descriptor = arguments
    faulthandler.enable()  # a contender that hangs is ended by SIGABRT, and so shows where it was
    module, function = loader.split(":")
    with socket.socket(fileno=int(descriptor)) as pipe:
        pipe.set_inheritable(False)  # a compiler that it starts must not keep the pipe open
        serve(getattr(importlib.import_module(module), function), json.loads(settings), pipe)


if __name__ == "__main__":
    main(sys.argv[1:])
