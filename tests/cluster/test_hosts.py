"""Sums and training on four machines that a slow network joins."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts import Hosts, obstacle
from tests.mpirun import needs_mpirun, run_python
from tests.stalls import GRACE, SECONDS, script

pytestmark = [pytest.mark.hosts, needs_mpirun]

JOB = ("-m", "hpdl_mpi", "train", "jobs/mlp_mnist.toml", "--set", "training.epochs=1")
"""Its gradients are 4.7 MB."""


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    if reason := obstacle():
        pytest.skip(reason)
    with Hosts(4) as found:
        yield found


def succeed(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("ranks_per_host", [1, 2])
def test_what_ranks_promise_holds_across_machines(hosts: Hosts, ranks_per_host: int) -> None:
    suite = ("-m", "pytest", "--with-mpi", "-q", "tests/mpi/test_communicator.py", "tests/mpi/test_collectives.py")
    assert "passed" in succeed(hosts.run(sys.executable, *suite, ranks_per_host=ranks_per_host))


def test_a_ring_gives_the_bits_that_it_gives_on_one_machine(hosts: Hosts, tmp_path: Path) -> None:
    ring = ("--set", "parallel.algorithm=ring", "--run-dir")
    assert "4 ranks on 4 nodes" in succeed(hosts.run(sys.executable, *JOB, *ring, str(tmp_path / "hosts")))
    succeed(run_python(4, *JOB, *ring, str(tmp_path / "machine")))
    summaries = [json.loads((tmp_path / run / "summary.json").read_text()) for run in ("hosts", "machine")]
    assert summaries[0]["parameters_digest"] == summaries[1]["parameters_digest"]


def test_the_network_is_as_slow_as_it_is_said_to_be(hosts: Hosts, tmp_path: Path) -> None:
    """What benchmarks on it measure is the network, and not this machine's memory."""
    bench = ("-m", "hpdl_mpi", "bench", "allreduce", "--sizes", "4MiB", "--algorithm", "auto,ring")
    succeed(hosts.run(sys.executable, *bench, "--json", str(tmp_path / "found.json")))
    result = json.loads((tmp_path / "found.json").read_text())
    assert (result["num_nodes"], result["place"]) == (4, "4x1")
    assert [row["chosen"] for row in result["rows"]] == ["ring", "ring"]
    assert all(row["bus_bandwidth"] < 125e6 for row in result["rows"])


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        pytest.param(
            "time.sleep(1.5); os.kill(os.getpid(), signal.SIGSTOP)", r"no answer; \d s ago: step 5, ", id="stopped"
        ),
        pytest.param("time.sleep(60)", r"step 5, operation \d+: at work", id="slow"),
    ],
)
def test_a_rank_of_another_machine_that_is_late_is_named(hosts: Hosts, fault: str, said: str) -> None:
    done = hosts.run(sys.executable, "-c", script(fault))
    took = time.time() - float(done.stdout.split()[0])
    assert done.returncode == 1
    assert "rank 1 is late" in done.stderr
    assert re.search(rf"  rank 1 on \S+, process \d+: {said}", done.stderr)
    assert "was killed" not in done.stderr, "the job ends since it says so"
    assert took < SECONDS + 1.5 + GRACE


def test_a_killed_rank_of_another_machine_is_named(hosts: Hosts) -> None:
    done = hosts.run(sys.executable, "-c", script("os.kill(os.getpid(), signal.SIGKILL)"))
    assert done.returncode != 0
    assert re.search(
        r"\[rank 1 of 4 on \S+\] Error: process \d+ was killed, has crashed or left without a word", done.stderr
    )
