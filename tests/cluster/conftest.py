"""The Slurm cluster of the tests: started once, or skipped where Slurm is not installed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.slurm import SlurmCluster, missing_programs


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """A two-node Slurm cluster on this machine."""
    if missing := missing_programs():
        pytest.skip(f"Slurm is not installed: no {', '.join(missing)} (Debian: apt-get install slurm-wlm munge)")
    with SlurmCluster() as cluster:
        yield cluster


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Put the daemons' logs beside the failure of a test that used the cluster."""
    report = yield
    cluster = getattr(item, "funcargs", {}).get("slurm")
    if report.failed and cluster is not None:
        report.sections.append(("Slurm's daemons", cluster.logs()))
    return report
