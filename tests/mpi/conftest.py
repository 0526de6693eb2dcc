"""Tests that run as all ranks of one MPI job: ``mpirun -n 3 python -m pytest --with-mpi tests/mpi``.

Every rank runs every test. A test fails on all ranks if it fails on one, rank 0 reports for all, and the ranks go on
together. If the others never reach the end of a test that one rank has failed, that rank reports for itself and ends
the job. So does every rank, with its stacks, when a test takes too long.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pytest

from hpdl_mpi.comm import Communicator
from hpdl_mpi.comm import world as job_world

LIMIT = 120.0
"""Seconds that a test may take."""

PATIENCE = 10.0
"""Seconds that a rank waits for the others at the end of a test that it has failed itself."""

RANKS = pytest.StashKey[Communicator]()
STDERR = pytest.StashKey[TextIO]()
"""What the terminal sees; pytest keeps what tests write to theirs."""


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Join the job; let rank 0 alone write to the terminal."""
    if not config.getoption("--with-mpi"):
        return
    config.stash[STDERR] = os.fdopen(os.dup(2), "w")
    config.stash[RANKS] = job_world().split(0)
    if config.stash[RANKS].rank != 0:
        silence = open(os.devnull, "w")  # noqa: SIM115  (closed by the end of the process)
        config.get_terminal_writer()._file = silence


@pytest.fixture
def world(pytestconfig: pytest.Config) -> Communicator:
    """All ranks, on a communicator of the test's own: no message of another test can reach it."""
    return pytestconfig.stash[RANKS].split(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Show every rank's stacks, and end the job, if a test takes too long."""
    comm = item.config.stash.get(RANKS, None)
    if comm is None:
        return (yield)
    with alarm(LIMIT, item, lambda: f"{item.nodeid} takes more than {LIMIT} s\n{stacks()}"):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """Make every rank's report of a test fail if one does."""
    report = yield
    comm = item.config.stash.get(RANKS, None)
    if comm is None or comm.size == 1:
        return report
    text = f"[rank {comm.rank}] {report.longreprtext}" if report.failed else None
    patience = PATIENCE if report.failed else LIMIT
    with alarm(patience, item, lambda: f"{item.nodeid} has ended here, but not on every rank\n{text or ''}"):
        failures = [failure for failure in comm.allgather_obj(text) if failure is not None]
    if failures:
        report.outcome = "failed"
        report.longrepr = "\n\n".join(failures)
    return report


@contextmanager
def alarm(seconds: float, item: pytest.Item, say: Callable[[], str]) -> Iterator[None]:
    """End the job with what `say` returns unless the block is left in time; other ranks get a moment to say theirs."""

    comm = item.config.stash[RANKS]

    def ring() -> None:
        print(f"[rank {comm.rank}] {say()}", file=item.config.stash[STDERR], flush=True)
        time.sleep(2.0)
        comm.abort(1)

    timer = threading.Timer(seconds, ring)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def stacks() -> str:
    """Return the stacks of all threads but this one, without the frames of pytest."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    lines = []
    for ident, frame in sys._current_frames().items():
        if ident != threading.get_ident():
            shown = [
                entry
                for entry in traceback.extract_stack(frame)
                if not {"_pytest", "pluggy", "pytest"} & {*Path(entry.filename).parts}
            ]
            lines += [f"{names.get(ident, ident)}:\n", *traceback.format_list(shown)]
    return "".join(lines)
