"""The command line as a user types it; what it cannot do is one message and an exit code."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file

from hpdl_mpi.data import Dataset
from hpdl_mpi.data.writer import Split, write_dataset
from hpdl_mpi.train.predict import _csv
from tests.training_cases import write_images, write_table

LIMIT = 120
"""Seconds after which a command that hangs is ended."""

JOB = """
name = "tiny"
[model]
name = "mlp"
hidden = [8]
outputs = {outputs}
[data]
train = "{data}"
test = "{data}"
[data.transform]
standardize = {standardize}
[data.target_transform]
standardize = {standardize}
[training]
epochs = 2
global_batch_size = 16
loss = "{loss}"
[optimizer]
name = "sgd"
lr = 0.05
[parallel]
threads = 1
"""


def hpdl(*arguments, cwd=None, **environ):
    return subprocess.run(
        [sys.executable, "-m", "hpdl_mpi", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(Path.cwd())} | environ,
    )


def succeed(*arguments, **options):
    result = hpdl(*arguments, **options)
    assert result.returncode == 0, result.stderr
    return result.stdout


def refuse(*arguments, **options):
    """Run a command that must end with exit code 2 and one line on standard error, and return the line."""
    result = hpdl(*arguments, **options)
    assert result.returncode == 2, (result.stdout, result.stderr)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A folder with a job and its run."""
    folder = tmp_path_factory.mktemp("classifier")
    images = write_images(folder / "images.h5")
    (folder / "job.toml").write_text(JOB.format(outputs=5, data=images, loss="cross_entropy", standardize="false"))
    succeed("train", folder / "job.toml", "--run-dir", folder / "run")
    return folder


@pytest.fixture(scope="module")
def averaged(classifier):
    """A run of the same job with a moving average, and with a best checkpoint that is not the latest."""
    aids = ["training.ema=0.5", "training.early_stopping={metric='accuracy', patience=9, min_delta=1}"]
    overrides = [part for aid in aids for part in ("--set", aid)]
    output = succeed("train", classifier / "job.toml", "--run-dir", classifier / "averaged", *overrides)
    assert "test (ema) loss" in output
    return classifier / "averaged"


@pytest.fixture(scope="module")
def regressor(tmp_path_factory):
    """A folder with a job and its run."""
    folder = tmp_path_factory.mktemp("regressor")
    table = write_table(folder / "table.h5")
    (folder / "job.toml").write_text(JOB.format(outputs=1, data=table, loss="mse", standardize="true"))
    succeed("train", folder / "job.toml", "--run-dir", folder / "run")
    return folder


def test_a_run_folder_holds_what_is_promised(classifier):
    run = classifier / "run"
    assert sorted(path.name for path in run.iterdir()) == [
        ".lock",
        "checkpoints",
        "job.json",
        "metrics.jsonl",
        "summary.json",
    ]
    summary = json.loads((run / "summary.json").read_text())
    promised = {"model", "num_parameters", "world_size", "dp", "pp", "epochs", "steps", "global_batch_size"}
    promised |= {"train_loss", "test_loss", "test_accuracy", "test_rmse", "samples_per_second", "wall_seconds"}
    assert promised <= summary.keys()
    assert (summary["model"], summary["steps"], summary["test_rmse"]) == ("mlp", 8, None)


def test_the_resolved_job_holds_every_choice_and_can_be_run_again(regressor, tmp_path):
    job = json.loads((regressor / "run" / "job.json").read_text())
    assert (job["parallel"]["dp"], job["parallel"]["threads"]) == (1, 1)
    assert len(job["data"]["transform"]["mean"]) == 3
    assert not job["data"]["transform"]["standardize"]
    succeed("train", regressor / "run" / "job.json", "--run-dir", tmp_path / "again")
    first, again = (json.loads((run / "summary.json").read_text()) for run in (regressor / "run", tmp_path / "again"))
    assert first["parameters_digest"] == again["parameters_digest"]


def test_eval_gives_the_metrics_of_the_summary(classifier, tmp_path):
    output = succeed("eval", classifier / "run", "--json", tmp_path / "metrics.json")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    summary = json.loads((classifier / "run" / "summary.json").read_text())
    assert metrics["accuracy"] == summary["test_accuracy"]
    assert metrics["loss"] == pytest.approx(summary["test_loss"], rel=1e-6)
    assert f"accuracy {metrics['accuracy']:.4f}" in output


def test_eval_takes_the_moving_average_unless_told_and_the_best_if_told(averaged, tmp_path):
    found = {}
    for options in ([], ["--no-ema"], ["--best"]):
        output = succeed("eval", averaged, *options, "--json", tmp_path / "metrics.json")
        values = json.loads((tmp_path / "metrics.json").read_text())
        assert output.endswith("(ema)\n") == (values["weights"] == "ema") == (options != ["--no-ema"])
        found[" ".join(options)] = values["step"], values["loss"]
    summary = json.loads((averaged / "summary.json").read_text())
    assert found[""] == (8, pytest.approx(summary["test_loss"], rel=1e-6))
    assert summary["early_stopping"]["best_step"] == found["--best"][0] == 4
    assert len(set(found.values())) == 3


def test_an_exported_run_begins_another(classifier, averaged, tmp_path):
    weights = tmp_path / "a=b.safetensors"
    assert "weights of step 8, moving averages written to" in succeed("export", averaged, "--output", weights)
    odd = succeed("export", averaged, "--output", tmp_path / "a\nb.safetensors")
    assert odd.endswith("a\\nb.safetensors\n")
    tensors = load_file(weights)
    shapes = {name: array.shape for name, array in tensors.items()}
    assert shapes == {"1.weight": (8, 36), "1.bias": (8,), "3.weight": (5, 8), "3.bias": (5,)}
    again = ["train", classifier / "job.toml", "--set", "optimizer.lr=0.0", "--run-dir", tmp_path / "run"]
    assert f"begins with 4 of 4 tensors from {weights}" in succeed(*again, "--init", weights)
    assert json.loads((tmp_path / "run" / "job.json").read_text())["init"]["file"] == str(weights)
    succeed("export", tmp_path / "run", "--output", tmp_path / "again.safetensors")
    for name, array in load_file(tmp_path / "again.safetensors").items():
        np.testing.assert_array_equal(array, tensors[name])
    larger = [*again[:-1], tmp_path / "larger", "--set", "model.outputs=7", "--init", weights]
    message = refuse(*larger)
    assert "Found different: 3.weight (5, 8), not (7, 8), 3.bias (5,), not (7,)" in message
    assert f"begins with 2 of 4 tensors from {weights}" in succeed(*larger, "--init-skip", "3.*")
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "not a whole .safetensors file" in refuse(*again[:-1], tmp_path / "none", "--init", weights)
    assert not (tmp_path / "none").exists()


def test_predict_writes_class_and_probability(classifier, tmp_path):
    succeed("predict", classifier / "run", "--input", classifier / "images.h5", "--output", tmp_path / "out.csv")
    table = np.genfromtxt(tmp_path / "out.csv", delimiter=",", names=True)
    with h5py.File(classifier / "images.h5") as file:
        accuracy = np.mean(table["class"] == file["y"][()])
    assert accuracy == json.loads((classifier / "run" / "summary.json").read_text())["test_accuracy"]
    assert np.all((table["probability"] > 0.2 - 1e-6) & (table["probability"] <= 1))
    assert table["sample"].tolist() == list(range(50))


def test_predict_and_export_write_into_the_run_folder_and_say_what_they_replace(classifier, tmp_path):
    shutil.copytree(classifier / "run", tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    for command, file in (
        (["predict", "../run", "--input", classifier / "images.h5"], "predictions.csv"),
        (["export", "../run"], "model.safetensors"),
    ):
        for end in ("", ", which replaces the one that was there"):
            output = succeed(*command, cwd=tmp_path / "elsewhere")
            assert output.endswith(f" written to {tmp_path / 'run' / file}{end}\n")
            assert (tmp_path / "run" / file).stat().st_size > 0
    assert not list((tmp_path / "elsewhere").iterdir())


def test_outputs_that_are_not_finite_are_counted_and_have_no_class(classifier, tmp_path):
    with h5py.File(classifier / "images.h5") as file:
        x = file["x"][()].astype(np.float32)
    x[[17, 20]] = np.nan
    x[40, 0, 0] = np.inf
    np.savez(tmp_path / "in.npz", x=x)
    result = hpdl("predict", classifier / "run", "--input", tmp_path / "in.npz", "--output", tmp_path / "out.csv")
    assert result.returncode == 0
    assert result.stderr == ("3 of 50 predictions are not finite numbers, the first of sample 17: look at the inputs\n")
    table = np.genfromtxt(tmp_path / "out.csv", delimiter=",", names=True)
    np.testing.assert_array_equal(np.flatnonzero(table["class"] == -1), [17, 20, 40])
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(table["probability"])), [17, 20, 40])


def write_named(folder, source, names):
    """Write the samples of a file as two shards that name their classes, and return their folder."""
    with h5py.File(source) as file:
        split = Split({"x": file["x"][()], "y": file["y"][()]}, {"y": {"classes": names}})
    write_dataset(folder, {"test": split}, num_shards={"test": 2})
    return folder / "test"


def test_predict_takes_a_folder_or_a_glob_and_the_names_of_its_classes(classifier, tmp_path):
    names = ["a", "b, or c", 'd "e"', "f", "g"]
    shards = write_named(tmp_path / "five", classifier / "images.h5", names)
    rows = {}
    for source in (classifier / "images.h5", shards, shards / "*.h5"):
        succeed("predict", classifier / "run", "--input", source, "--output", tmp_path / "out.csv")
        with open(tmp_path / "out.csv", newline="") as file:
            rows[source] = list(csv.DictReader(file))
    plain, folder, pattern = rows.values()
    assert folder == pattern
    assert [row.pop("name") for row in pattern] == [names[int(row["class"])] for row in plain]
    assert plain == pattern
    assert list(plain[0]) == ["sample", "class", "probability"]
    assert list(folder[0]) == ["sample", "class", "probability", "name"]


def test_the_training_data_name_the_classes_and_other_data_do_not(classifier, tmp_path):
    trained = write_named(tmp_path / "trained", classifier / "images.h5", list("abcde"))
    other = write_named(tmp_path / "other", classifier / "images.h5", list("vwxyz"))
    more = write_named(tmp_path / "more", classifier / "images.h5", list("abcdef"))
    succeed("train", classifier / "job.toml", "--set", f"data.train={trained}", "--run-dir", tmp_path / "run")
    predict = ["predict", tmp_path / "run", "--output", tmp_path / "out.npz", "--input"]
    succeed(*predict, other)
    assert set(np.load(tmp_path / "out.npz")["name"]) <= set("abcde")
    shutil.rmtree(trained)
    succeed(*predict, more)
    assert "name" not in np.load(tmp_path / "out.npz")


def test_predict_writes_values_in_the_unit_of_the_targets(regressor, tmp_path):
    with h5py.File(regressor / "table.h5") as file:
        x, y = file["x"][()], file["y"][()]
    np.savez(tmp_path / "in.npz", features=x)
    succeed(
        "predict",
        regressor / "run",
        "--input",
        tmp_path / "in.npz",
        "--array",
        "features",
        "--output",
        tmp_path / "out.npz",
    )
    values = np.load(tmp_path / "out.npz")["value"]
    summary = json.loads((regressor / "run" / "summary.json").read_text())
    # predictions are float32 near 5000, so they are exact to 5000 * 2^-23 = 6e-4 of a value
    assert np.sqrt(np.mean((values - y) ** 2)) == pytest.approx(summary["test_rmse"], abs=1e-2)


def test_a_run_folder_in_use_is_refused_without_resume(classifier):
    message = refuse("train", classifier / "job.toml", "--run-dir", classifier / "run")
    assert "the run folder holds a run already" in message
    assert "--resume" in message


def test_a_finished_run_resumed_does_nothing_but_say_so(classifier):
    before = json.loads((classifier / "run" / "summary.json").read_text())
    succeed("train", classifier / "job.toml", "--run-dir", classifier / "run", "--resume")
    after = json.loads((classifier / "run" / "summary.json").read_text())
    assert after["parameters_digest"] == before["parameters_digest"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=3", "seed: a run cannot change this when it goes on. Found 3; expected 0"),
        ("model.hidden=[9]", "model: a run cannot change this when it goes on"),
        ("training.global_batch_size=8", "training.global_batch_size: a run cannot change this"),
        (
            "training.epochs=1",
            "training.epochs: the run has gone further than it shall. Found 4 steps in all; expected ",
        ),
    ],
)
def test_a_resumed_run_cannot_become_another(classifier, override, message):
    found = refuse("train", classifier / "job.toml", "--run-dir", classifier / "run", "--resume", "--set", override)
    assert found.startswith(f"Error: {message}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nowhere.toml"], "nowhere.toml: no such job file"),
        (["train", "job.toml", "--set", "optimizer.rate=1"], "job.toml: optimizer.rate: unknown key"),
        (["train", "job.toml", "--set", "data.transform.layout=hw", "--run-dir", "hw"], "data.transform.layout: "),
        (["train", "job.toml", "--set", "model.hidden=[1048576, 1048576]", "--run-dir", "huge"], "not enough memory"),
        (["train", "job.toml", "--run-dir", ""], "--run-dir: the run folder has no name"),
        (["train", "job.toml", "--set", "data.train=nowhere"], "data.train: "),
        (["train", "job.toml", "--set", "data.test=nowhere"], "data.test: "),
        (["train", "job.toml", "--run-dir", "/proc/none"], "the run folder cannot be written"),
        (["train", "job.toml", "--set", "parallel.dp=2"], "job.toml: parallel.pp x parallel.dp: the grid does not fit"),
        (["train", "job.toml", "--set", "parallel.threads=99999"], "job.toml: parallel.threads: not a possible number"),
        (
            ["train", "job.toml", "--set", "model.name=lenet", "--set", "model.hidden=4", "--set", "data.inputs=y"],
            "images",
        ),
        (["eval", "nowhere"], "the folder holds no run"),
        (["eval", "run", "--data", "nowhere"], "nowhere"),
        (["eval", "run", "--data", ""], "no data are named"),
        (["eval", "run", "--best"], "run: the run has no best checkpoint. Leave out --best"),
        (["train", "job.toml", "--init", "nowhere", "--run-dir", "none"], "nowhere: no such file"),
        (["train", "job.toml", "--init-skip", "3.*", "--run-dir", "none"], "init: says what is left out of no file"),
        (["export", "nowhere"], "the folder holds no run"),
        (["export", "run", "--output", "nowhere/x"], "nowhere/x: cannot be written"),
        (["predict", "run", "--input", "nowhere.h5"], "nowhere.h5: no such file"),
        (["predict", "run", "--input", "images.h5", "--array", "z"], "no array 'z'. Found x, y"),
        (["predict", "run", "--input", "images.h5", "--array", "y"], "samples of another shape"),
        (["predict", "run", "--input", "images.h5", "--output", "out.txt"], "expected .csv or .npz"),
        (["summary", "nowhere.toml"], "no such job file"),
        (["summary", "job.toml", "--set", "optimizer.lr=-1"], "job.toml: optimizer.lr: out of range"),
        (
            ["summary", "job.toml", "--set", "model.hiden=[8]"],
            "job.toml: model.hiden: unknown key; expected hidden or outputs or dropout.",
        ),
        (
            ["summary", "job.toml", "--set", "model.hidden=none", "--set", "model.name=vgg11_bn"],
            "job.toml: model: layer features.14 (MaxPool2d): the window does not fit the image",
        ),
        (["summary", "job.toml", "--set", "data.transform.layout=hw"], "job.toml: data.transform.layout: "),
        (["summary", "job.toml", "--set", "data.train=nowhere"], "job.toml: data.train: nowhere: no such file"),
        (["summary", "job.toml", "--set", "data.train=nowhere"], "Or say with --input-shape what shape samples"),
        (["summary", "job.toml", "--input-shape", "6x6"], "--input-shape: no list of numbers above 0. Found '6x6'"),
        (["summary", "job.toml", "--input-shape", "6,0"], "--input-shape: no list of numbers above 0. Found '6,0'"),
        (
            ["summary", "job.toml", "--input-shape", "6", "--set", "data.augment.flip=true"],
            "job.toml: data.augment: only images can be augmented",
        ),
        (
            ["summary", "job.toml", "--input-shape", "6", "--set", "data.target_transform.scale=2"],
            "job.toml: data.target_transform: class numbers are not transformed",
        ),
        (["summary", "job.toml", "--set", "parallel.pp=40"], "job.toml: parallel.pp: more stages than layers"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_one_line_and_exit_code_two(classifier, arguments, message):
    assert message in refuse(*arguments, cwd=classifier)


@pytest.mark.parametrize(
    "arguments",
    [
        ["eval", "no run", "--json", "nowhere/x.json"],
        ["predict", "no run", "--input", "images.h5", "--output", "nowhere/x.csv"],
    ],
    ids=["eval", "predict"],
)
def test_a_place_where_no_result_can_be_written_is_refused_before_the_work(tmp_path, arguments):
    message = f"Error: {arguments[-1]}: cannot be written. Expected a file in a folder that exists and can be written."
    assert refuse(*arguments, cwd=tmp_path) == message


def test_a_table_of_predictions_loses_no_digit():
    columns = {
        "sample": np.array([0, 1_234_567_891]),
        "single": np.array([1 / 3, 1e-30], np.float32),
        "double": np.array([1 / 3, -1e300]),
    }
    head, *rows = _csv(columns).decode().splitlines()
    assert head == "sample,single,double"
    samples, singles, doubles = zip(*(row.split(",") for row in rows), strict=True)
    assert samples == ("0", "1234567891")
    assert np.array(singles, np.float32).tolist() == columns["single"].tolist()
    assert np.array(doubles, np.float64).tolist() == columns["double"].tolist()


def test_progress_is_shown_as_asked_or_not_at_all(classifier, tmp_path):
    run = ["train", classifier / "job.toml", "--run-dir", tmp_path / "run"]
    message = refuse(*run, HPDL_PROGRESS="loud")
    assert message == "Error: HPDL_PROGRESS: out of range. Found 'loud'; expected bar, plain or silent."
    assert succeed(*run, HPDL_PROGRESS="silent") == ""
    assert "test accuracy" in succeed(*run, "--resume", HPDL_PROGRESS="plain")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("data info", ["in"]), ("data verify", ["in"]), ("summary", ["job.toml"])],
)
def test_what_runs_on_one_rank_is_refused_under_a_launcher_of_several(name, arguments):
    message = refuse(*name.split(), *arguments, OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="0")
    assert (
        message == f"Error: hpdl {name}: runs on one rank. Found OMPI_COMM_WORLD_SIZE=2. Start it without a launcher."
    )


def test_only_the_first_of_several_ranks_says_that_they_are_too_many():
    result = hpdl("data", "info", "in", OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="1")
    assert (result.returncode, result.stderr) == (2, "")


def test_a_hook_that_others_have_set_changes_nothing_on_one_rank():
    program = (
        "import sys\n"
        "sys.excepthook = lambda *_: print('the other hook', file=sys.stderr)\n"
        "from hpdl_mpi.cli.main import main\n"
        "sys.argv = ['hpdl', 'summary', 'nowhere.toml']\n"
        "main()"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LIMIT)
    assert result.returncode == 2
    assert result.stderr.startswith("Error: nowhere.toml: no such job file")


def test_a_folder_is_no_place_for_results(classifier):
    result = hpdl("eval", "run", "--json", "", cwd=classifier)
    assert result.returncode == 2
    assert "--json" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_damaged_run_folder_is_one_line_and_its_remedies_help(classifier, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(classifier / "run", run)
    latest = run / "checkpoints" / "step-0000000008"
    (latest / "manifest.json").write_text("{}")
    assert f"{latest}/manifest.json: a damaged checkpoint. Found format: missing. Remove" in refuse("eval", run)
    (run / "job.json").write_text("[]")
    resume = ["train", classifier / "job.toml", "--run-dir", run, "--resume"]
    assert f"{run}/job.json: not a valid job file. Found list" in refuse(*resume)
    (run / "job.json").unlink()
    assert "a damaged checkpoint" in refuse(*resume)
    shutil.rmtree(latest)
    succeed(*resume)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (run, classifier / "run")]
    assert summaries[0]["parameters_digest"] == summaries[1]["parameters_digest"]


def test_verify_takes_other_names_of_arrays_and_says_so(tmp_path):
    with h5py.File(tmp_path / "galaxies.h5", "w") as file:
        file["images"], file["redshift"] = np.zeros((4, 3), np.float32), np.zeros(4, np.float32)
    message = refuse("data", "verify", tmp_path / "galaxies.h5")
    assert "no array 'x'. Found images, redshift" in message
    assert "--inputs and --targets" in message
    names = ["--inputs", "images", "--targets", "redshift"]
    assert "sound, 4 samples" in succeed("data", "verify", tmp_path / "galaxies.h5", *names)


def test_summary_counts_parameters_operations_and_memory():
    output = succeed("summary", "jobs/lenet_mnist.toml")
    # 3x3x1x32 + 32, 3x3x32x64 + 64, 3136x128 + 128, 128x10 + 10; two operations per weight and output position
    for count in ("320", "18,496", "401,536", "1,290", "421,642", "451,584", "7,225,344", "8,482,304"):
        assert count in output
    assert "parameters 1.6 MiB + gradients 1.6 MiB + optimizer 1.6 MiB + activations" in output
    averaged = succeed("summary", "jobs/lenet_mnist.toml", "--set", "training.ema=0.9")
    assert "parameters 1.6 MiB + gradients 1.6 MiB + optimizer 3.2 MiB + activations" in averaged
    # three batches of 128, each of 784 pixels and a class: in float32 and int64, and as stored in bytes
    assert f"buffers {3 * 128 * (784 * 5 + 9) / 2**20:.1f} MiB" in output
    # the training data are smaller than the bound, so all of them, in whole blocks of at most 260 KiB with targets;
    # the figure is rounded to 0.1 MiB
    with Dataset.open("data/mnist/train") as data:
        blocks = float(output.partition("blocks of files up to ")[2].partition(" MiB")[0]) * 2**20
        shards = len(list(Path("data/mnist/train").glob("*.h5")))
        assert 0 <= blocks + 2**16 - data.num_samples * 785 <= 2**17 + shards * 260 * 1024


@pytest.mark.parametrize("stages", ["1", "2"])
def test_summary_needs_no_data_where_the_shape_of_samples_is_given(stages):
    job = ["jobs/lenet_mnist.toml", "--pp", stages]
    with_data = succeed("summary", *job)
    without = succeed("summary", *job, "--set", "data.train=nowhere", "--input-shape", "28,28,1")
    assert "besides, to read the training data" not in without
    assert "memory of" in without
    assert without.partition("└")[0] == with_data.partition("└")[0]  # the layers; those of the stages are timed


def test_ctrl_c_saves_the_run_and_resume_ends_with_the_same_bits(classifier, tmp_path):
    arguments = ["train", classifier / "job.toml", "--set", "training.epochs=400"]
    succeed(*arguments, "--run-dir", tmp_path / "whole")
    command = [sys.executable, "-m", "hpdl_mpi", *map(str, arguments), "--run-dir", str(tmp_path / "stopped")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    deadline = time.monotonic() + LIMIT
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, errors
    assert "stopped by SIGINT after step" in errors
    succeed(*arguments, "--run-dir", tmp_path / "stopped", "--resume")
    digests = [json.loads((tmp_path / run / "summary.json").read_text()) for run in ("whole", "stopped")]
    assert digests[0]["parameters_digest"] == digests[1]["parameters_digest"]


def test_the_package_and_its_help_load_nothing_heavy():
    program = (
        "import sys\n"
        "from hpdl_mpi.cli.main import main\n"
        "single = (['train'], ['eval'], ['predict'], ['summary'], ['export'])\n"
        "for command in ([], *single, ['data', 'convert'], ['bench', 'step']):\n"
        "    sys.argv = ['hpdl', *command, '--help']\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as end:\n"
        "        assert not end.code, end\n"
        "heavy = {'numpy', 'numba', 'h5py', 'mpi4py'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LIMIT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Usage: ") == 8
