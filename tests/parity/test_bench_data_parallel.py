"""PyTorch's data parallelism runs in ``hpdl bench step``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpdl_mpi.bench.data_parallel import APART, ONE_RANK, SUMS, TORCH_DDP, TORCH_ONE_RANK
from tests.mpirun import needs_mpirun, run_python

pytestmark = [pytest.mark.parity, needs_mpirun]

SCRIPT = """
import json, sys
from hpdl_mpi.bench.data_parallel import bench_data_parallel
from hpdl_mpi.comm import world

result = bench_data_parallel(world(), "lenet", 4, 1, "torch-ddp", num_rounds=2, turn_seconds=0.0)
if world().rank == 0:
    json.dump(result, open(sys.argv[1], "w"))
"""


def test_pytorchs_ranks_train_a_model_as_large_as_ours(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    done = run_python(2, "-c", SCRIPT, str(file))
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert set(result["vs"]) == {APART, ONE_RANK, SUMS, TORCH_ONE_RANK, *TORCH_DDP}
    steps = {name: figures["step_seconds"] for name, figures in result["vs"].items()}
    ours = result["step_seconds"]
    assert result["ratio"] == pytest.approx(min(steps[name] for name in TORCH_DDP) / ours)
    assert result["one_rank_ratio"] == pytest.approx(steps[TORCH_ONE_RANK] / steps[ONE_RANK])
    assert result["vs"][TORCH_ONE_RANK]["samples_per_second"] == pytest.approx(4 / steps[TORCH_ONE_RANK])
    assert all(figures["peak_bytes"] > 0 for name, figures in result["vs"].items() if name != SUMS)
    assert result["speedup"] == pytest.approx(2 * steps[ONE_RANK] / ours)
    assert result["efficiency"] == pytest.approx(steps[APART] / ours)
    assert 0 < result["exposed_seconds"] < ours
    assert result["hidden"] == pytest.approx(max(0, 1 - result["exposed_seconds"] / steps[SUMS]))
    assert result["samples_per_second"] == pytest.approx(2 * 4 / ours)
    assert result["versions"]["torch"].startswith("2.")
