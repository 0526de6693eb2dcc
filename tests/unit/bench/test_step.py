"""``hpdl bench step``: its result, its choice of contenders, its command line."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.bench import bench_step
from hpdl_mpi.bench.contender import Contender
from hpdl_mpi.bench.rounds import Turns
from hpdl_mpi.bench.step import OWN, check_twins, choose, report
from hpdl_mpi.bench.step_hpdl import load_parts
from hpdl_mpi.bench.torch_models import TORCH_MODELS
from hpdl_mpi.bench.workloads import WORKLOADS
from hpdl_mpi.cli import bench
from hpdl_mpi.models import MODELS
from hpdl_mpi.nn import Conv2d
from hpdl_mpi.nn.layer import walk
from tests.threads import needs_two_threads

KEYS = {"model", "batch", "threads", "precision", "step_seconds", "samples_per_second", "peak_bytes", "vs", "ratio"}


@pytest.fixture(scope="module")
def result():
    """A real run of our own contender, as short as can be."""
    return bench_step("lenet", 4, 1, num_rounds=2, turn_seconds=0.0)


def test_our_own_step_runs_and_its_result_is_json_with_the_keys_promised(result):
    assert json.loads(json.dumps(result)) == result
    assert set(result) >= KEYS
    assert (result["model"], result["batch"], result["threads"], result["precision"]) == ("lenet", 4, 1, "float32")
    assert result["samples_per_second"] == pytest.approx(4 / result["step_seconds"])
    # Parameters, gradients and momentum of 421,642 float32 values at least.
    assert result["peak_bytes"] > 3 * 421_642 * 4
    assert (result["vs"], result["ratio"]) == ({}, None)


def test_a_result_says_where_and_how_it_was_taken(result):
    assert result["rounds"] == 2
    assert result["steps_per_round"] == {"hpdl": 1}
    assert len(result["step_seconds_by_round"]["hpdl"]) == 2
    assert result["machine"]["cpu"]
    assert result["machine"]["cores"] == os.cpu_count()
    assert {"python", "hpdl_mpi", "numba", "numpy"} <= set(result["versions"])
    assert Path(result["command"].split()[0]).name == Path(sys.orig_argv[0]).name


def test_the_ratio_is_that_of_the_best_of_the_others():
    turns = {
        "hpdl": Turns(10, [1.0, 2.0, 3.0], peak_bytes=5),
        "torch-eager": Turns(10, [2.0, 8.0, 9.0], peak_bytes=6),
        "torch-compile": Turns(10, [3.0, 3.0, 3.0], peak_bytes=7),
    }
    figures = report(turns, batch=100)
    assert figures["step_seconds"] == 2.0
    assert figures["samples_per_second"] == 50.0
    assert figures["vs"] == {
        "torch-eager": {"step_seconds": 8.0, "peak_bytes": 6},
        "torch-compile": {"step_seconds": 3.0, "peak_bytes": 7},
    }
    assert figures["ratio"] == 1.5
    assert figures["ratio_by_round"]["torch-compile"]["median"] == 1.5
    assert figures["ratio_by_round"]["torch-compile"]["max"] == 3.0


def test_torch_means_all_of_its_forms_and_says_which_it_leaves_out():
    assert choose("lenet", None) == ([], [])
    assert choose("lenet", "torch") == (["torch-eager", "torch-channels-last", "torch-compile"], [])
    assert choose("lenet", "torch-compile") == (["torch-compile"], [])
    for own in OWN:
        assert choose("lenet", own) == ([own], [])
    names, notes = choose("lenet", "torch-bf16")
    assert names == ["torch-bf16"]
    assert "rounds to bfloat16" in notes[0]
    names, notes = choose("mlp", "torch")
    assert names == ["torch-eager", "torch-compile"]
    assert notes == ["torch-channels-last is left out: it is a layout of images, and mlp takes none"]
    with pytest.raises(InputError, match="a layout of images"):
        choose("mlp", "torch-channels-last")
    with pytest.raises(InputError, match="'tensorflow'; expected torch or torch-eager or"):
        choose("mlp", "tensorflow")


def test_our_own_step_is_held_against_itself_without_winograds_method():
    result = bench_step("lenet", 4, 1, "exact", num_rounds=2, turn_seconds=0.0)
    assert result["ratio"] == result["vs"]["exact"]["step_seconds"] / result["step_seconds"]
    for exact, expected in ((False, {"unfolded", "winograd"}), (True, {"unfolded"})):
        replica, _ = load_parts(1)("lenet", 2, exact)
        assert {layer.method for layer in walk(replica.model) if isinstance(layer, Conv2d)} == expected
    with pytest.raises(InputError, match="it is about convolutions, and mlp has none"):
        choose("mlp", "exact")


@needs_two_threads
def test_two_threads_are_held_against_one():
    result = bench_step("lenet", 4, 2, "one-thread", num_rounds=2, turn_seconds=0.0)
    assert result["threads"] == 2
    assert result["ratio"] == result["vs"]["one-thread"]["step_seconds"] / result["step_seconds"]


def test_a_contender_that_is_not_installed_is_an_error_with_the_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"PyTorch is not installed.*pip install 'hpdl_mpi\[bench\]'"):
        bench_step("lenet", 4, 1, "torch")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet-x", 4, 1), "--model: unknown model"),
        (("lenet", 0, 1), "--batch: out of range. Found 0"),
        (("lenet", 4, 10_000), "--threads: out of range. Found 10000; expected 1 to"),
    ],
)
def test_impossible_arguments_are_refused_before_anything_starts(monkeypatch, arguments, message):
    monkeypatch.setattr(Contender, "__enter__", lambda self: pytest.fail("started a contender"))
    with pytest.raises(InputError, match=message):
        bench_step(*arguments)


def test_contenders_that_train_other_models_are_found_out():
    contenders = [Contender("one", []), Contender("other", [])]
    for size, contender in enumerate(contenders):
        contender.ready = {"num_parameters": size}
    with pytest.raises(RuntimeError, match="differ in their numbers of parameters"):
        check_twins(contenders)


def test_every_workload_has_a_model_and_its_twin():
    assert set(WORKLOADS) == set(TORCH_MODELS)
    assert set(WORKLOADS) <= set(MODELS)


def hpdl(*arguments: object):
    """Run ``hpdl ...`` with the benchmarks alone."""
    app = typer.Typer()
    app.add_typer(bench.app, name="bench")
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_prints_a_table_and_writes_json(monkeypatch, tmp_path, result):
    asked: dict[str, object] = {}

    def fake(model, batch, threads, vs, *, num_rounds, say):
        asked.update(model=model, batch=batch, threads=threads, vs=vs, num_rounds=num_rounds)
        return result

    monkeypatch.setattr("hpdl_mpi.bench.bench_step", fake)
    file = tmp_path / "result.json"
    options = ("--model", "lenet", "--batch", 4, "--threads", 1, "--vs", "torch", "--rounds", 12, "--json", file)
    printed = hpdl("bench", "step", *options)
    assert printed.exit_code == 0, printed.output
    assert asked == {"model": "lenet", "batch": 4, "threads": 1, "vs": "torch", "num_rounds": 12}
    assert json.loads(file.read_text()) == result
    assert "Training step: lenet, batch 4, float32, 1 thread" in printed.output
    assert f"{result['step_seconds'] * 1e3:.1f}" in printed.output


def test_a_profile_beside_contenders_is_refused():
    error = hpdl("bench", "step", "--profile", "--vs", "torch").exception
    assert isinstance(error, InputError)
    assert "a profile is of our own step alone" in str(error)


def test_fewer_than_ten_rounds_are_refused():
    error = hpdl("bench", "step", "--rounds", 9).exception
    assert isinstance(error, InputError)
    assert "at least 10" in str(error)


def test_a_file_that_cannot_be_written_is_refused_before_the_benchmark(tmp_path):
    error = hpdl("bench", "step", "--json", tmp_path / "absent" / "result.json").exception
    assert isinstance(error, InputError)
    assert "cannot be written" in str(error)


def test_a_profile_may_be_of_one_step():
    printed = hpdl("bench", "step", "--profile", "--model", "lenet", "--batch", 2, "--rounds", 1)
    assert printed.exit_code == 0, printed.output
    assert "medians of 1 step;" in printed.output


def test_a_profile_of_several_ranks_is_refused(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setenv("PMI_RANK", "0")
    error = hpdl("bench", "step", "--profile").exception
    assert isinstance(error, InputError)
    assert "runs on one rank" in str(error)
