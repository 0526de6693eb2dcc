"""Standard output of a run, whose loss must not end it: a closed terminal or pipe, a full disk."""

from __future__ import annotations

import contextlib
import io
import os
import sys


class Output(io.TextIOBase):
    """Standard output as it is now; from the first text on that cannot be written, all is dropped."""

    def __init__(self) -> None:
        super().__init__()
        self._stream = sys.stdout  # None if it was closed before Python began

    def write(self, text: str) -> int:
        """Write a text, or drop it."""
        return self._attempt(text)

    def flush(self) -> None:
        """Hand on what is held back."""
        self._attempt("")

    def _attempt(self, text: str) -> int:
        if self._stream is None:
            return len(text)
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError as error:
            drop_output()
            with contextlib.suppress(OSError):  # nobody is left who could be told
                print(f"Standard output is lost ({error.strerror}); the run goes on.", file=sys.stderr, flush=True)
        return len(text)


def say(text: str) -> None:
    """Write a line to standard output, or drop it if that is lost."""
    print(text, file=Output(), flush=True)


def counted(number: int, noun: str, nouns: str | None = None) -> str:
    """Return how many there are of something: "1 rank", "2 ranks"; `nouns` is a plural that has more than an s."""
    return f"{number} {noun if number == 1 else nouns or noun + 's'}"


def drop_output() -> None:
    """Send what this process still writes to standard output nowhere, also what Python flushes at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def flush_output() -> None:
    """Hand on what is held back, if it can be: called where a more important message follows."""
    with contextlib.suppress(OSError):
        if sys.stdout is not None:
            sys.stdout.flush()
