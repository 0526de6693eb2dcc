"""PyTorch's pipeline runs in ``hpdl bench pipeline``, with each of the schedules that both have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpdl_mpi.bench.pipeline_torch import TORCH_SCHEDULES
from tests.mpirun import needs_mpirun, run_python

pytestmark = [pytest.mark.parity, needs_mpirun]

SCRIPT = """
import json, sys
from hpdl_mpi.bench.pipeline import bench_pipeline
from hpdl_mpi.comm import world

short = {"microbatch_size": 8, "num_rounds": 2, "turn_seconds": 0.0}
result = bench_pipeline(world(), sys.argv[1], sys.argv[2], 4, vs="torch-pipelining", **short)
if world().rank == 0:
    json.dump(result, open(sys.argv[3], "w"))
"""


@pytest.mark.parametrize(
    ("model", "schedule"), [*(("mlp", schedule) for schedule in TORCH_SCHEDULES), ("gpt_nano", "1f1b")]
)
def test_pytorchs_pipeline_trains_a_model_as_large_as_ours(tmp_path: Path, model: str, schedule: str) -> None:
    file = tmp_path / "result.json"
    done = run_python(2, "-c", SCRIPT, model, schedule, str(file))
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    theirs = result["vs"]["torch-pipelining"]
    assert result["ratio"] == pytest.approx(theirs["step_seconds"] / result["step_seconds"])
    assert theirs["peak_bytes"] > 0
    assert result["versions"]["torch"].startswith("2.")
