"""Jobs on pipelines of real MPI ranks: memory, failures, traces, the command line. Each test starts an ``mpirun``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpdl_mpi.parallel.pipeline import Op, complete, make_schedule
from tests.mpirun import needs_mpirun, run_python

pytestmark = needs_mpirun

JOB = "jobs/mlp_pipeline.toml"
SHORT = ("--set", "training.epochs=none", "--set", "training.steps=30", "--set", "data.test=none")


def train(num_ranks: int, folder: Path, *arguments: str):
    return run_python(num_ranks, "-m", "hpdl_mpi", "train", JOB, "--run-dir", str(folder), *SHORT, *arguments)


LIMITED = """
import gc, resource, sys
import numpy as np
from hpdl_mpi import Parallel, Trainer, nn, optim
from hpdl_mpi.bench.memory import _status
from hpdl_mpi.comm import world
from hpdl_mpi.train import loop

def fit(width, depth, steps):
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width), nn.ReLU())]
    trainer = Trainer(nn.Sequential(nn.Flatten(), *layers, nn.Linear(5)), loss=nn.CrossEntropy(),
                      optimizer=optim.SGD(0.01, momentum=0.9),
                      parallel=Parallel(pp=world().size, threads=1, num_microbatches=4))
    return trainer.fit(sys.argv[1], steps=steps, global_batch_size=256)

fit(8, 4, 2)  # imports and compiles all there is
gc.collect()  # addresses that are given back later would not be limited
above = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + above,) * 2)
steps = world().allgather_obj(fit(1024, 32, 2)["steps"])
if world().rank == 0:
    print("done", steps, flush=True)
"""


def test_a_model_too_large_for_one_rank_trains_on_two(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["x"], file["y"] = rng.random((256, 16)).astype(np.float32), rng.integers(0, 5, 256)
    # 32 layers of 1024 x 1024 float32: 128 MiB of parameters, as much of gradients and of momentum.
    arguments = ("-c", LIMITED, str(tmp_path / "data.h5"), str(320 * 2**20))
    environ = {"MALLOC_ARENA_MAX": "1", "HPDL_PROGRESS": "silent"}
    alone = run_python(1, *arguments, environ=environ)
    assert alone.returncode != 0
    assert "not enough memory" in alone.stderr
    together = run_python(2, *arguments, environ=environ)
    assert (together.returncode, "done [2, 2]" in together.stdout) == (0, True), together.stderr


FAILING = """
import os, signal, sys
import numpy as np
from hpdl_mpi import nn
from hpdl_mpi.comm import world
from hpdl_mpi.parallel.pipeline import make_schedule
from tests.pipeline_training import make_batch, run_grid

class Failing(nn.Linear):
    def backward_input(self, dy, ctx):
        if world().rank == world().size // 2:
            if sys.argv[1] == "raise":
                raise RuntimeError("this layer is broken")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().backward_input(dy, ctx)

import tests.pipeline_training as cases
whole = cases.make_model
def broken():
    model = whole()
    model.children["6"].__class__ = Failing
    return model
cases.make_model = broken
dp = int(sys.argv[2])
pp = world().size // dp
run_grid(world(), dp, make_schedule("1f1b", pp, 4), [4, 7][: pp - 1], make_batch(13))
"""


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_a_rank_that_raises_ends_the_job_and_shows_the_grid(num_ranks: int) -> None:
    done = run_python(num_ranks, "-c", FAILING, "raise", "1")
    assert done.returncode == 1
    assert done.stderr.count("RuntimeError: this layer is broken") == 1
    assert re.search(r"rank 1 of the pipeline was at 1[BI]0, action \d+ of \d+:\n +0 F0", done.stderr), done.stderr


@pytest.mark.parametrize("dp", [1, 2])
def test_a_rank_that_is_killed_ends_the_job(dp: int) -> None:
    assert run_python(2 * dp, "-c", FAILING, "kill", str(dp)).returncode != 0


def test_an_error_of_the_job_shows_no_grid_twice(tmp_path: Path) -> None:
    done = train(2, tmp_path / "run", "--set", "parallel.pp=2", "--set", "parallel.cuts=[99]")
    assert done.returncode == 2
    assert done.stderr.count("the cuts leave a stage without layers") == 1


@pytest.mark.parametrize(("num_ranks", "dp"), [(2, 1), (4, 2)])
def test_a_trace_has_all_actions_of_all_ranks_in_order(tmp_path: Path, num_ranks: int, dp: int) -> None:
    trace = tmp_path / "trace.json"
    done = train(num_ranks, tmp_path / "run", "--set", "parallel.pp=2", "--trace", str(trace))
    assert done.returncode == 0, done.stderr
    assert "traced steps" in done.stdout
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["ph"] == "X"]
    kinds = {"step", "compute", "send", "receive", "wait", "update", "round"} | ({"reduce"} if dp > 1 else set())
    assert {event["cat"] for event in events} == kinds
    assert min(event["ts"] for event in events) == 0
    schedule = complete(make_schedule("1f1b", 2, 8))
    for rank in range(num_ranks):
        mine = [event for event in events if event["pid"] == rank]
        assert sum(event["cat"] == "step" for event in mine) == 20
        kinds = {"compute", "send", "receive"}
        found = [event["name"] for event in sorted(mine, key=lambda event: event["ts"]) if event["cat"] in kinds]
        expected = [str(action) for action in schedule.programs[rank // dp] if action.op is not Op.REDUCE]
        assert found == expected * 20
    assert (tmp_path / "trace.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())["trace"]
    parts = summary["parts"]
    assert summary["step_seconds"] > 0
    assert summary["predicted_seconds"] > 0
    assert 0 <= summary["bubble_measured"] < 1
    assert all(0 < parts[kind] < parts["step"] for kind in ("compute", "wait", "update"))  # so are their medians


def test_a_run_that_is_shorter_than_its_trace_writes_what_there_is(tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    done = train(2, tmp_path / "run", "--set", "parallel.pp=2", "--set", "training.steps=5", "--trace", str(trace))
    assert done.returncode == 0, done.stderr
    events = json.loads(trace.read_text())["traceEvents"]
    assert sum(event.get("cat") == "step" and event["pid"] == 0 for event in events) == 3
    missing = train(2, tmp_path / "other", "--set", "parallel.pp=2", "--trace", str(tmp_path / "no" / "trace.json"))
    assert missing.returncode == 2
    assert "cannot be written" in missing.stderr


def test_a_run_of_pipelines_is_evaluated_and_predicted_on_one_rank_and_on_pipelines(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(4, run).returncode == 0
    resolved = json.loads((run / "job.json").read_text())["parallel"]
    assert (resolved["pp"], len(resolved["cuts"]), resolved["num_microbatches"]) == (4, 3, 8)
    outputs = []
    for number, (num_ranks, options) in enumerate([(1, ()), (2, ("--pp", "2")), (4, ("--pp", "4")), (2, ())]):
        target = tmp_path / f"{number}.csv"
        files = ("--input", "data/mnist/test/test-00000-of-00002.h5", "--output", str(target))
        command = ("-m", "hpdl_mpi")
        done = run_python(num_ranks, *command, "predict", str(run), *files, *options)
        assert done.returncode == 0, done.stderr
        metrics = tmp_path / f"{number}.json"
        data = ("--data", "data/mnist/test", "--json", str(metrics))
        done = run_python(num_ranks, *command, "eval", str(run), *data, *options)
        assert done.returncode == 0, done.stderr
        outputs.append((target.read_text(), json.loads(metrics.read_text())["accuracy"]))
    assert len(set(outputs)) == 1


def test_a_resumed_run_keeps_the_cuts_that_were_chosen(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(2, run, "--set", "parallel.pp=2", "--set", "training.steps=3").returncode == 0
    chosen = json.loads((run / "job.json").read_text())["parallel"]
    done = train(2, run, "--set", "parallel.pp=2", "--set", "training.steps=5", "--resume")
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "job.json").read_text())["parallel"] == chosen
    done = train(4, run, "--set", "training.steps=7", "--resume")
    assert done.returncode == 0, done.stderr
    assert len(json.loads((run / "job.json").read_text())["parallel"]["cuts"]) == 3


def test_a_summary_shows_the_stages() -> None:
    done = run_python(1, "-m", "hpdl_mpi", "summary", JOB, "--pp", "2")
    assert done.returncode == 0, done.stderr
    assert "stages; simulated bubble" in done.stdout
    assert "memory of the rank that takes most with micro-batches of 16, 8 of them" in done.stdout


def losses(run: Path) -> list[float]:
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "step"]


@pytest.mark.parametrize("job", ["lenet_mnist", "mlp_pipeline", "mlp_hybrid"])
def test_jobs_take_the_steps_of_one_rank_on_pipelines(tmp_path: Path, job: str) -> None:
    shared = ("--set", "training.dtype=float64", "--set", "training.epochs=none", "--set", "training.steps=8")
    command = ("-m", "hpdl_mpi", "train", f"jobs/{job}.toml", *shared, "--set", "data.test=none")
    grids = {"lenet_mnist": (2, 2), "mlp_pipeline": (4, 4), "mlp_hybrid": (4, 2)}
    for ranks, pp in ((1, 1), grids[job]):
        done = run_python(ranks, *command, "--set", f"parallel.pp={pp}", "--run-dir", str(tmp_path / str(ranks)))
        assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(tmp_path / str(grids[job][0])), losses(tmp_path / "1"), rtol=1e-9)


def test_a_schedule_of_ones_own_trains_from_anywhere(tmp_path: Path) -> None:
    schedule, run = tmp_path / "mine.csv", tmp_path / "run"
    done = run_python(1, "-m", "hpdl_mpi", "schedule", "show", "zb-h1", "-p", "2", "-m", "3", "--csv", str(schedule))
    assert done.returncode == 0, done.stderr
    settings = ("parallel.pp=2", f"parallel.schedule={schedule}", "parallel.num_microbatches=none")
    done = train(2, run, *(word for setting in settings for word in ("--set", setting)))
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "job.json").read_text())["parallel"]["num_microbatches"] == 3
    schedule.unlink()
    data = ("--data", "data/mnist/test")
    assert run_python(2, "-m", "hpdl_mpi", "eval", str(run), "--pp", "2", *data).returncode == 0


def test_a_rank_that_leaves_before_memory_grows_is_noticed() -> None:
    script = """
import sys
from hpdl_mpi.comm import Arena, world
arena = Arena(world())
arena.reserve(1000)
if world().rank == 1:
    sys.exit(0)
arena.reserve(1 << 20)
"""
    done = run_python(2, "-c", script)
    assert done.returncode == 1
    assert "rank 1 has ended its program" in done.stderr
