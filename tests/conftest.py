"""Settings that all suites share.

HPDL_NO_SKIPS=1 is for machines that have all that any test needs: a test that is skipped there has failed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

Report = pytest.TestReport | pytest.CollectReport

# The same examples on every run and machine; a slow machine fails no test.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Let nothing skip a test where nothing may."""
    return refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    """Let nothing skip a file where nothing may."""
    return refuse_skip((yield))


def refuse_skip(report: Report) -> Report:
    """Return the report, a failure if it tells of a skip and HPDL_NO_SKIPS is set. A failure foretold is no skip."""
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("HPDL_NO_SKIPS") == "1":
        _, _, reason = report.longrepr
        report.outcome, report.longrepr = "failed", f"HPDL_NO_SKIPS is set. {reason}"
    return report
