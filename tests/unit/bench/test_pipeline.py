"""``hpdl bench pipeline``: its result, what it refuses, its table."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys

import pytest
from rich.console import Console

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.bench.pipeline import TORCH, bench_pipeline
from hpdl_mpi.bench.pipeline_torch import TORCH_SCHEDULES
from hpdl_mpi.bench.table import pipeline_table
from hpdl_mpi.comm import Communicator, SingleCommunicator
from hpdl_mpi.parallel.pipeline import FAMILIES

KEYS = {
    *("schedule", "num_stages", "num_microbatches", "step_seconds", "predicted_seconds", "bubble_measured"),
    *("bubble_predicted", "bubble_formula", "peak_bytes", "vs", "ratio"),
}


def bench(comm: Communicator, **settings: object) -> dict:
    settings = {"model": "mlp", "schedule": "1f1b", "num_microbatches": 3} | settings
    return bench_pipeline(comm, microbatch_size=4, num_rounds=2, turn_seconds=0.0, **settings)


PROGRAM = """
import json
from hpdl_mpi.comm import run_threads
from tests.unit.bench.test_pipeline import bench
results = run_threads(2, lambda comm: bench(comm, vs="zb-h1"))
assert json.loads(json.dumps(results)) == results
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results():
    """A real run on two ranks, as short as can be.

    It has a process of its own: where others have freed memory, the peak may not rise.
    """
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_result_has_the_keys_promised(results):
    result = results[0]
    assert set(result) >= KEYS
    assert (result["num_stages"], result["num_ranks"], result["rounds"]) == (2, 2, 2)
    assert len(result["cuts"]) == 1
    assert result["bubble_formula"] == pytest.approx(1 / 4)
    assert 0 <= result["bubble_measured"] < 1
    assert 0 <= result["bubble_predicted"] < 1
    assert 0 < result["predicted_seconds"] < 10 * result["step_seconds"]
    # Parameters, gradients and momentum of the larger stage at least: 1024 x 1024 weights of float32.
    assert result["peak_bytes"] > 3 * 4 * 2**20
    other = result["vs"]["zb-h1"]
    assert result["ratio"] == pytest.approx(other["step_seconds"] / result["step_seconds"])
    assert other["bubble_formula"] == pytest.approx(1 / 10)
    assert len(other["step_seconds_by_round"]) == len(result["step_seconds_by_round"]) == 2


def test_all_ranks_agree_on_what_was_measured(results):
    measured = [
        {key: result[key] for key in ("step_seconds", "predicted_seconds", "bubble_measured")} for result in results
    ]
    assert measured[0] == measured[1]


def test_the_table_has_a_row_for_each_contender(results):
    text = io.StringIO()
    Console(file=text, width=120).print(pipeline_table(results[0]))
    assert "1f1b" in text.getvalue()
    assert "zb-h1" in text.getvalue()
    assert "mlp on a pipeline of 2 ranks, 3 micro-batches of 4" in text.getvalue()


def test_one_rank_has_no_bubble_but_its_own_overhead():
    result = bench(SingleCommunicator())
    assert (result["bubble_predicted"], result["bubble_formula"], result["vs"], result["ratio"]) == (0.0, 0.0, {}, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "gpt5"}, "--model: unknown model"),
        ({"vs": "horovod"}, "--vs: unknown contender"),
        ({"vs": "1f1b"}, "--vs: a schedule is compared with another one"),
        ({"schedule": "fast"}, r"parallel\.schedule: no such schedule"),
        ({"schedule": "zb-h1", "vs": TORCH}, "--schedule: torch-pipelining has no such schedule"),
        ({"model": "lenet", "vs": TORCH}, "--model: torch-pipelining cannot be cut alike"),
        ({"cuts": [1]}, r"parallel\.cuts: out of range"),
    ],
)
def test_what_cannot_be_timed_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        bench(SingleCommunicator(), **settings)


def test_pytorch_is_asked_for_by_name(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="PyTorch is not installed"):
        bench(SingleCommunicator(), vs=TORCH)


def test_pytorchs_schedules_are_some_of_ours():
    assert TORCH_SCHEDULES.keys() <= FAMILIES.keys()
