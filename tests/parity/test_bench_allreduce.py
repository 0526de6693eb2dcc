"""Gloo takes part in ``hpdl bench allreduce``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.mpirun import needs_mpirun, run_python

pytestmark = [pytest.mark.parity, needs_mpirun]


def test_gloo_sums_beside_us(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    options = ("--sizes", "4KiB,1MiB", "--algorithm", "auto", "--vs", "gloo", "--json", str(file))
    done = run_python(3, "-m", "hpdl_mpi", "bench", "allreduce", *options)
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    rows = [row for row in result["rows"] if row["memory"] == "private"]
    assert [row["nbytes"] for row in rows] == [4096, 1 << 20]
    for row in rows:
        assert row["gloo_ratio"] == pytest.approx(row["gloo_seconds"] / row["seconds"])
        assert row["gloo_seconds"] > 0
    assert result["versions"]["torch"].startswith("2.")
