"""The benchmark's side of a contender: a process that sleeps between its turns."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, Self

from hpdl_mpi.base.errors import HpdlError, InputError

_LAST_LINES = 30


class ContenderError(HpdlError, RuntimeError):
    """A contender crashed or hung in the middle of a benchmark."""


class Contender:
    """A process that takes part in a benchmark, from ``with`` until the end of the block; `worker` is its other side.

    Parameters
    ----------
    name : str
    command : sequence of str
        What to run. The number of a descriptor is put behind it: that of its end of the pipe.
    environ : mapping, optional
        Variables set for the process beside those of this one.
    remedy : str, optional
        What to do if it cannot start.
    start_seconds : float
        How long it may take to get ready: some compile a whole model.
    turn_seconds : float
        How long it may take to answer.
    grace_seconds : float
        How long it may take to end by itself.

    Attributes
    ----------
    ready : dict
        What it said when it was.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environ: Mapping[str, str] | None = None,
        remedy: str | None = None,
        start_seconds: float = 1200.0,
        turn_seconds: float = 300.0,
        grace_seconds: float = 10.0,
    ) -> None:
        self.name = name
        self.ready: dict[str, Any] = {}
        self._command = list(command)
        self._environ = {**os.environ, **(environ or {})}
        self._remedy = remedy
        self._start_seconds = start_seconds
        self._turn_seconds = turn_seconds
        self._grace_seconds = grace_seconds

    def __enter__(self) -> Self:
        """Start the process and wait until it is ready.

        Raises
        ------
        InputError
            It cannot start; the message ends with what it said last.
        """
        self._pipe, other_end = socket.socketpair()
        self._answers = self._pipe.makefile("rb")
        self._words = tempfile.TemporaryFile()
        with other_end:
            self._process = subprocess.Popen(
                [*self._command, str(other_end.fileno())],
                pass_fds=[other_end.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._words,
                stderr=self._words,
                env=self._environ,
                start_new_session=True,  # so that whatever it starts can be ended with it
            )
        try:
            self.ready = self._exchange(b"", self._start_seconds)
        except BaseException:
            self._end(grace=0.0)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end(grace=0.0 if kind else self._grace_seconds)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Give the contender a turn and return its answer; blocks until it comes.

        Raises
        ------
        ContenderError
            It crashed, or did not answer in time; the message ends with what it said last.
        """
        return self._exchange(json.dumps(request).encode() + b"\n", self._turn_seconds)

    def _exchange(self, request: bytes, limit: float) -> dict[str, Any]:
        self._pipe.settimeout(limit)
        try:
            self._pipe.sendall(request)
            answer = self._answers.readline()
        except TimeoutError:
            self._process.send_signal(signal.SIGABRT)  # a Python process shows the stacks of its threads
            self._fate()
            raise self._error(f"gave no answer within {limit:g} s") from None
        except ConnectionError:
            answer = b""
        if not answer:
            raise self._error(self._fate())
        return json.loads(answer)

    def _fate(self) -> str:
        """Wait for the end of a process that is about to end, and say how it ended."""
        try:
            code = self._process.wait(self._grace_seconds)
        except subprocess.TimeoutExpired:
            return "closed its end of the pipe"
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def _error(self, what: str) -> HpdlError:
        self._words.seek(0)
        lines = self._words.read().decode(errors="replace").rstrip().splitlines()[-_LAST_LINES:]
        words = "Its last words:\n" + "\n".join(f"  {line}" for line in lines) if lines else "It said nothing"
        if self.ready:
            return ContenderError(f"{what} in its turn", where=self.name, remedy=words)
        advice = f"{self._remedy}. {words}" if self._remedy else words
        return InputError(f"{what} before its first turn", where=self.name, remedy=advice)

    def _end(self, grace: float) -> None:
        """Close the pipe, which asks the process to end, and end it if it does not."""
        self._answers.close()
        self._pipe.close()
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._words.close()


def pool_sizes(threads: int) -> dict[str, str]:
    """Return the variables that bound a process's thread pools, which libraries read when they are imported."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    return dict.fromkeys(names, str(threads))


def worker_command(loader: str, settings: Mapping[str, Any]) -> list[str]:
    """Return the command of a contender that is a Python function, ``module:function``; see `worker`."""
    return [sys.executable, "-m", "hpdl_mpi.bench.worker", loader, json.dumps(settings)]
