"""Tests that run as all ranks of one MPI job: ``mpirun -n 3 python -m pytest --with-mpi tests/mpi``.

Every rank runs every test. A test fails on all ranks if it fails on one, rank 0 reports for all, and the ranks go on
together. If the others never reach the end of a test that one rank has failed, that rank reports itself and ends the
job. A test that hangs on all ranks is ended by pytest's own time limit, after every rank has printed its stacks.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator

import pytest

from hpdl_mpi.comm import Communicator
from hpdl_mpi.comm import world as job_world

PATIENCE = 20.0
"""Seconds that a rank waits for the others at the end of a test that it has failed itself."""

RANKS = pytest.StashKey[Communicator]()


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Join the job; let rank 0 alone write to the terminal."""
    if not config.getoption("--with-mpi"):
        return
    config.stash[RANKS] = job_world().split(0)
    if config.stash[RANKS].rank != 0:
        silence = open(os.devnull, "w")  # noqa: SIM115  (closed by the end of the process)
        config.get_terminal_writer()._file = silence


@pytest.fixture
def world(pytestconfig: pytest.Config) -> Communicator:
    """All ranks, on a communicator of the test's own: no message of another test can reach it."""
    return pytestconfig.stash[RANKS].split(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """Make every rank's report of a test fail if one does."""
    report = yield
    comm = item.config.stash.get(RANKS, None)
    if comm is None or comm.size == 1:
        return report
    text = f"[rank {comm.rank}] {report.longreprtext}" if report.failed else None
    watch = threading.Timer(PATIENCE, _report_and_abort, (comm, item.nodeid, text))
    watch.daemon = True
    if text is not None:
        watch.start()
    failures = [failure for failure in comm.allgather_obj(text) if failure is not None]
    watch.cancel()
    if failures:
        report.outcome = "failed"
        report.longrepr = "\n\n".join(failures)
    return report


def _report_and_abort(comm: Communicator, test: str, text: str) -> None:
    print(f"{test} failed while other ranks went on waiting in it.\n{text}", file=sys.__stderr__, flush=True)
    comm.abort(1)
