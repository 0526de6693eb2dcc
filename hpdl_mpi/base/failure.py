"""How an exception that nobody catches ends a job of several processes: said once, with a code that is not zero."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn, Protocol

from hpdl_mpi.base.errors import FAILURE, HpdlError
from hpdl_mpi.base.output import flush_output

INTERRUPTED = 130
"""Exit code of a program that Ctrl-C has ended."""

HEAD_START = 0.75
"""Seconds that the other ranks leave to rank 0 to speak for all, where all fail alike."""

_armed: list[Ranks] = []
"""Those that `abort_on_exception` was last called with, if it was."""


class Ranks(Protocol):
    """This process's place among the ranks of a job, and the means to end them all."""

    rank: int
    size: int

    def abort(self, code: int) -> NoReturn:
        """End all ranks of the job with this exit code."""


def abort_on_exception(ranks: Ranks, prepare: Callable[[], None] = lambda: None) -> None:
    """From now on an uncaught exception, in any thread of this process, ends the whole job.

    The rank writes one message to standard error: of an `HpdlError` what it says, of anything else the traceback. Then
    it aborts all ranks with the error's exit code. An error that all ranks share is written by rank 0 alone, and each
    rank ends by itself. ``SystemExit`` ends a rank as it always does; the others end when they next wait for it.

    Parameters
    ----------
    ranks : Ranks
        In place of those of an earlier call.
    prepare : callable
        What the other ranks need of this one before rank 0 can end them.
    """

    process = os.getpid()

    def report(error: BaseException) -> None:
        if os.getpid() != process:  # forked: no rank, and it must not end MPI as Python would at its exit
            sys.__excepthook__(type(error), error, error.__traceback__)
            flush_output()
            os._exit(FAILURE)
        shared = ranks.size == 1 or (isinstance(error, HpdlError) and error.shared)
        if shared and ranks.rank != 0:
            raise _exit_after(error)
        if not shared and ranks.rank != 0:
            prepare()
            time.sleep(HEAD_START)
        flush_output()
        print(message(error, None if shared else ranks), file=sys.stderr, flush=True)
        if shared:
            raise _exit_after(error)
        ranks.abort(exit_code(error))

    def on_main(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        report(error)

    def on_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
            report(args.exc_value)

    sys.excepthook = on_main
    threading.excepthook = on_thread
    _armed[:] = [ranks]


def _exit_after(error: BaseException) -> SystemExit:
    """Return what ends this process for an error that was told.

    An exit from within the hook lets nobody free what the error's frames hold: HDF5 ends first, and may crash on it.
    """
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__
    return SystemExit(exit_code(error))


def ends_other_ranks() -> bool:
    """Tell whether an uncaught exception of this process will end other ranks than this one."""
    return any(ranks.size > 1 for ranks in _armed)


def exit_code(error: BaseException) -> int:
    """Return the exit code of a program that this error ends."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return error.exit_code if isinstance(error, HpdlError) else FAILURE


def message(error: BaseException, ranks: Ranks | None) -> str:
    """Return what the user reads of an uncaught error, with the rank in front if `ranks` is given."""
    if isinstance(error, KeyboardInterrupt):
        text = "Interrupted."
    elif isinstance(error, HpdlError):
        text = "\n".join([f"Error: {error}", *getattr(error, "__notes__", ())])
    else:
        text = "".join(traceback.format_exception(error)).rstrip()
    return text if ranks is None else f"[rank {ranks.rank} of {ranks.size} on {socket.gethostname()}] {text}"
