"""How a failure on one rank ends the job: said once, at once, with a code that is not zero."""

from __future__ import annotations

import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from hpdl_mpi.base.errors import FAILURE, HpdlError
from hpdl_mpi.comm.communicator import Communicator

INTERRUPTED = 130
"""Exit code of a program that Ctrl-C has ended."""

Result = TypeVar("Result")

_HEAD_START = 0.75


def agree(comm: Communicator, function: Callable[[], Result]) -> Result:
    """Call a function on rank 0 and return its result, or raise its error, on every rank. Collective.

    Meant for checks of what all ranks are given alike, such as the job file: one rank looks, one rank speaks, and the
    program ends in order everywhere.

    Parameters
    ----------
    comm : Communicator
        All ranks of the job.
    function : callable
        Returns something that can be pickled.

    Returns
    -------
    object
        What the function returned on rank 0.

    Raises
    ------
    HpdlError
        What the function raised, on every rank. Uncaught, it ends the job with its exit code and one message.
    """
    outcome: tuple[Result | None, HpdlError | None] | None = None
    if comm.rank == 0:
        try:
            outcome = (function(), None)
        except HpdlError as error:
            error.shared = True
            outcome = (None, error)
    result, failure = comm.bcast_obj(outcome)
    if failure is not None:
        raise failure
    return result


def abort_on_exception(comm: Communicator) -> None:
    """From now on an uncaught exception, in any thread of this process, ends the whole job.

    The rank writes one message to standard error: of an `HpdlError` what it says, of anything else the traceback. Then
    it aborts all ranks with the error's exit code. An error of `agree` is written by rank 0 alone and each rank ends
    by itself. ``SystemExit`` ends a rank as it always does; the others end when they next wait for it.
    """

    def report(error: BaseException) -> None:
        shared = comm.size == 1 or (isinstance(error, HpdlError) and error.shared)
        if shared and comm.rank != 0:
            raise SystemExit(exit_code(error))
        if not shared and comm.rank != 0:
            # Where all ranks fail alike, rank 0 ends the others before they say the same.
            time.sleep(_HEAD_START)
        sys.stdout.flush()
        print(message(error, None if shared else comm), file=sys.stderr, flush=True)
        if shared:
            raise SystemExit(exit_code(error))
        comm.abort(exit_code(error))

    def on_main(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        report(error)

    def on_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
            report(args.exc_value)

    sys.excepthook = on_main
    threading.excepthook = on_thread


def exit_code(error: BaseException) -> int:
    """Return the exit code of a program that this error ends."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return error.exit_code if isinstance(error, HpdlError) else FAILURE


def message(error: BaseException, comm: Communicator | None) -> str:
    """Return what the user reads of an uncaught error, with the rank in front if `comm` is given."""
    if isinstance(error, KeyboardInterrupt):
        text = "Interrupted."
    elif isinstance(error, HpdlError):
        text = f"Error: {error}"
    else:
        text = "".join(traceback.format_exception(error)).rstrip()
    return text if comm is None else f"[rank {comm.rank} of {comm.size} on {socket.gethostname()}] {text}"
