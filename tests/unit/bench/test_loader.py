"""``hpdl bench loader``: its result, what it says is the bottleneck, its command line."""

from __future__ import annotations

import io
import json

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.bench.contender import Contender
from hpdl_mpi.bench.loader import bench_loader, report
from hpdl_mpi.bench.rounds import Turns
from hpdl_mpi.bench.table import loader_table
from hpdl_mpi.cli import bench
from tests.training_cases import write_images

JOB = """
name = "tiny"
[model]
name = "mlp"
hidden = [8]
outputs = 5
[data]
train = "{data}"
[data.augment]
flip = true
crop = 6
pad = 1
mixup = 0.2
[training]
epochs = 1
global_batch_size = 16
loss = "cross_entropy"
[optimizer]
name = "adam"
lr = 0.05
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A job and its data."""
    path = tmp_path_factory.mktemp("loader")
    images = write_images(path / "images.h5")
    (path / "job.toml").write_text(JOB.format(data=images))
    return path


@pytest.fixture(scope="module")
def result(folder):
    """A real run, as short as can be."""
    return bench_loader(folder / "job.toml", ["data.augment.cutout=2"], num_rounds=2, turn_seconds=0.0)


def text_of(result: dict) -> str:
    text = io.StringIO()
    Console(file=text, width=120).print(loader_table(result))
    return text.getvalue()


def test_loader_and_step_are_timed_alone_and_together(result):
    assert json.loads(json.dumps(result)) == result
    assert list(result["samples_per_second"]) == ["loader", "step", "together"]
    assert (result["batch"], result["num_samples"], result["threads"], result["rounds"]) == (16, 50, 1, 2)
    for name, rate in result["samples_per_second"].items():
        assert rate == pytest.approx(16 / result["spread"][name]["median"])
        assert len(result["batch_seconds_by_round"][name]) == 2
    assert result["machine"]["cpu"]
    assert "h5py" in result["versions"]


def test_a_dataset_alone_has_a_loader_alone(folder):
    result = bench_loader(folder / "images.h5", num_rounds=2, turn_seconds=0.0)
    assert list(result["samples_per_second"]) == ["loader"]
    assert (result["bottleneck"], result["ratio"], result["batch"]) == (None, None, 50)
    assert "bottleneck" not in text_of(result)


@pytest.mark.parametrize(
    ("loader", "step", "bottleneck", "line"),
    [
        (0.25, 1.0, "step", "the step is the bottleneck: alone, the other is 4.0 times as fast"),
        (3.0, 1.0, "loader", "the loader is the bottleneck: alone, the other is 3.0 times as fast"),
    ],
)
def test_the_slower_of_both_is_the_bottleneck(result, loader, step, bottleneck, line):
    turns = {
        name: Turns(3, [seconds] * 3, peak_bytes=7)
        for name, seconds in {"loader": loader, "step": step, "together": max(loader, step)}.items()
    }
    figures = report(turns, batch=8)
    assert figures["bottleneck"] == bottleneck
    assert figures["ratio"] == pytest.approx(step / loader)
    assert figures["samples_per_second"]["loader"] == pytest.approx(8 / loader)
    assert line in text_of(result | figures)


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("job.toml", {"threads": 10_000}, "--threads: out of range"),
        ("job.toml", {"batch": 0}, "--batch: out of range"),
        ("job.toml", {"num_rounds": 0}, "--rounds: out of range"),
        ("job.toml", {"overrides": ["data.augment.crop=9"]}, "images are smaller than the crop"),
        ("images.h5", {"overrides": ["seed=1"]}, "--set: a dataset has no keys"),
        ("absent.toml", {}, r"absent\.toml: no such job file"),
        ("absent", {}, "absent"),
    ],
)
def test_what_cannot_be_timed_is_refused_before_anything_starts(monkeypatch, folder, path, options, message):
    monkeypatch.setattr(Contender, "__enter__", lambda self: pytest.fail("started a contender"))
    with pytest.raises(InputError, match=message):
        bench_loader(folder / path, **options)


def test_the_command_prints_a_table_and_writes_json(monkeypatch, tmp_path, folder, result):
    asked: dict[str, object] = {}

    def fake(path, overrides, *, batch, threads, num_rounds, say):
        asked.update(path=path, overrides=overrides, batch=batch, threads=threads, num_rounds=num_rounds)
        return result

    monkeypatch.setattr("hpdl_mpi.bench.loader.bench_loader", fake)
    app = typer.Typer()
    app.add_typer(bench.app, name="bench")
    job, file = folder / "job.toml", tmp_path / "result.json"
    options = ["--set", "seed=1", "--batch", "8", "--rounds", "1", "--json", str(file)]
    printed = CliRunner().invoke(app, ["bench", "loader", str(job), *options])
    assert printed.exit_code == 0, printed.output
    assert asked == {"path": job, "overrides": ["seed=1"], "batch": 8, "threads": 1, "num_rounds": 1}
    assert json.loads(file.read_text()) == result
    assert "is the bottleneck" in printed.output
