"""Early stopping: what it judges, when it ends a run, and what it keeps."""

from __future__ import annotations

import json
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpdl_mpi import nn
from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import SingleCommunicator, run_threads
from hpdl_mpi.train import Checkpoint, EarlyStopping, Trainer
from hpdl_mpi.train.evaluation import Evaluator
from hpdl_mpi.train.metrics import Metrics
from hpdl_mpi.train.signals import Stopped
from hpdl_mpi.train.stopping import Watch
from tests.training_cases import StopAfter, fit_images, make_trainer, metrics_but_times, read_metrics, write_table

values = st.lists(st.floats(0, 3, allow_nan=False).map(lambda x: round(x, 1)) | st.just(math.nan), max_size=12)


def stop_of(found: list[float], patience: int, min_delta: float, sign: int) -> tuple[int | None, int | None]:
    """Return, naively, after which evaluation a run ends, if it does, and which one was the best."""
    best: int | None = None
    for number, value in enumerate(found):
        better = best is None or sign * (value - found[best]) > min_delta
        if better and not math.isnan(value):
            best = number
        if number - (-1 if best is None else best) >= patience:
            return number, best
    return None, best


@given(values, st.integers(1, 4), st.sampled_from([0.0, 0.5]), st.sampled_from(["loss", "accuracy"]))
def test_a_watch_sees_what_the_definition_says(found, patience, min_delta, metric):
    settings = EarlyStopping(metric=metric, patience=patience, min_delta=min_delta)
    watch, stopped = Watch(), None
    for number, value in enumerate(found):
        watch = watch.after(number + 1, Metrics(**{"loss": 0.0} | {metric: value}), settings)
        if watch.over(settings):
            stopped = number
            break
    expected, best = stop_of(found, patience, min_delta, 1 if metric == "accuracy" else -1)
    assert stopped == expected
    assert watch.best_step == (0 if best is None else best + 1)
    assert watch.best is None if best is None else watch.best == found[best]


def test_another_metric_begins_anew():
    watch = (
        Watch().after(4, Metrics(loss=1.0), EarlyStopping(patience=1)).after(8, Metrics(2.0), EarlyStopping(patience=1))
    )
    assert watch == Watch("loss", 8, 1.0, 4, 1)
    accuracy = EarlyStopping(metric="accuracy", patience=1)
    assert not watch.over(accuracy)
    assert watch.after(12, Metrics(9.0, accuracy=0.5), accuracy) == Watch("accuracy", 12, 0.5, 12)


def test_what_is_said_counts_by_the_margin_that_was_asked_for():
    settings = EarlyStopping(patience=1, min_delta=0.5)
    watch = Watch().after(4, Metrics(3.0), settings).after(8, Metrics(2.75), settings)
    said = "early stopping after step 8: test loss was not better than 3, of step 4, by more than 0.5 in 1 evaluation"
    assert watch.describe(settings) == said


LOSSES = [5.0, 4.0, 4.5, 4.2, 4.1, 3.0, 2.0]
"""After each epoch of four steps; with patience 3 the second is the best when the run ends after the fifth."""

PATIENCE_3 = EarlyStopping(patience=3)


@pytest.fixture
def _scripted(monkeypatch):
    """Let evaluations find `LOSSES`."""
    monkeypatch.setattr(Evaluator, "__call__", lambda self: Metrics(LOSSES[self._replica.step // 4 - 1], accuracy=0.5))


def fit(images, folder, comm=None, loss=None, **changes):
    trainer = make_trainer(comm or SingleCommunicator(), **({"loss": loss} if loss else {}))
    return fit_images(trainer, images, folder, **({"epochs": 7, "early_stopping": PATIENCE_3} | changes))


def kept_in(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.usefixtures("_scripted")
@pytest.mark.parametrize("num_ranks", [1, 3])
def test_a_run_ends_on_all_ranks_and_keeps_its_best_checkpoint(images, tmp_path, num_ranks, capsys):
    folder = tmp_path / "run"
    settings = {"checkpoint": Checkpoint(keep=1)}
    summaries = run_threads(num_ranks, lambda comm: fit(images, folder, comm, **settings))
    for summary in summaries:
        assert (summary["steps"], summary["epochs"], summary["test_loss"]) == (20, 5, 4.1)
        found = {"stopped": True, "metric": "loss", "step": 20, "best": 4.0, "best_step": 8, "misses": 3}
        assert summary["early_stopping"] == found
    assert kept_in(folder) == ["best", "step-0000000008", "step-0000000020"]
    assert os.readlink(folder / "checkpoints" / "best") == "step-0000000008"
    (line,) = read_metrics(folder, "early_stopping")
    assert (line["step"], line["best"], line["best_step"], line["misses"]) == (20, 4.0, 8, 3)
    said = "early stopping after step 20: test loss was not better than 4, of step 8, in 3 evaluations"
    assert said in capsys.readouterr().out
    assert json.loads((folder / "summary.json").read_text())["early_stopping"]["stopped"]


@pytest.mark.usefixtures("_scripted")
@pytest.mark.parametrize("step", [3, 8, 11, 16, 19])
def test_a_resumed_run_ends_at_the_same_step(images, tmp_path, step):
    whole = fit(images, tmp_path / "whole")
    with pytest.raises(Stopped):
        fit(images, tmp_path / "parts", loss=StopAfter(step + 1))
    resumed = fit(images, tmp_path / "parts", resume=True)
    for key in ("early_stopping", "parameters_digest", "train_loss", "steps"):
        assert resumed[key] == whole[key]
    assert metrics_but_times(tmp_path / "parts") == metrics_but_times(tmp_path / "whole")
    assert os.readlink(tmp_path / "parts" / "checkpoints" / "best") == "step-0000000008"
    assert {"step-0000000008", "step-0000000020"} < set(kept_in(tmp_path / "parts"))


@pytest.mark.usefixtures("_scripted")
def test_a_run_that_is_killed_in_an_evaluation_forgets_nothing(images, tmp_path, monkeypatch):
    whole = fit(images, tmp_path / "whole")
    evaluate = Evaluator.__call__

    def fail(evaluator):
        if evaluator._replica.step == 16:
            raise KeyboardInterrupt
        return evaluate(evaluator)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "__call__", fail)
        with pytest.raises(KeyboardInterrupt):
            fit(images, tmp_path / "killed")
    assert fit(images, tmp_path / "killed", resume=True)["early_stopping"] == whole["early_stopping"]
    assert metrics_but_times(tmp_path / "killed") == metrics_but_times(tmp_path / "whole")


@pytest.mark.usefixtures("_scripted")
def test_an_ended_run_ends_again_or_goes_on_with_more_patience(images, tmp_path):
    folder = tmp_path / "run"
    ended = fit(images, folder)
    before = metrics_but_times(folder)
    again = fit(images, folder, resume=True)
    assert again["early_stopping"] == ended["early_stopping"]
    assert metrics_but_times(folder) == before
    more = fit(images, folder, resume=True, early_stopping=EarlyStopping(patience=4))
    assert (more["steps"], more["early_stopping"]["stopped"], more["early_stopping"]["best_step"]) == (28, False, 28)
    assert os.readlink(folder / "checkpoints" / "best") == "step-0000000028"
    assert "step-0000000008" not in kept_in(folder)


def test_every_evaluation_has_a_checkpoint(images, tmp_path, monkeypatch):
    """Also those within epochs; what was best at last has outlived `keep`, and stopping early has its own."""
    monkeypatch.setattr(Evaluator, "__call__", lambda self: Metrics(abs(self._replica.step - 3.0), accuracy=0.5))
    folder = tmp_path / "run"
    summary = fit(images, folder, eval_every=3, checkpoint=Checkpoint(keep=1))
    assert (summary["steps"], summary["early_stopping"]["best_step"]) == (12, 3)
    assert kept_in(folder) == ["best", "step-0000000003", "step-0000000012"]
    trainer = make_trainer(SingleCommunicator())
    trainer.load(folder / "checkpoints" / "best")
    assert trainer.replica.step == 3


@pytest.mark.usefixtures("_scripted")
def test_without_a_run_folder_a_run_ends_too(images):
    assert fit(images, None)["steps"] == 20


@pytest.mark.usefixtures("_scripted")
def test_a_best_checkpoint_that_is_gone_has_no_name(images, tmp_path):
    folder = tmp_path / "run"
    fit(images, folder, epochs=2)
    (folder / "checkpoints" / "step-0000000008" / "manifest.json").unlink()
    with pytest.raises(Stopped):
        fit(images, folder, resume=True, loss=StopAfter(2))
    assert os.readlink(folder / "checkpoints" / "best") == "step-0000000004"
    (folder / "checkpoints" / "step-0000000004" / "manifest.json").unlink()
    with pytest.raises(Stopped):
        fit(images, folder, resume=True, loss=StopAfter(2))
    assert "best" not in kept_in(folder)


def test_what_cannot_be_watched_is_refused(images, tmp_path):
    with pytest.raises(InputError, match=r"training\.early_stopping: nothing to evaluate on\. Name test data"):
        fit(images, None, validate=None)
    with pytest.raises(InputError, match=r"early_stopping\.metric: .* Found top5; expected loss or accuracy"):
        fit(images, tmp_path / "run", early_stopping=EarlyStopping(metric="top5", patience=1))
    assert not (tmp_path / "run").exists()
    table = write_table(tmp_path / "table.h5")
    trainer = Trainer(nn.Linear(1), loss=nn.Huber(), optimizer=make_trainer(SingleCommunicator())._assembly.optimizer)
    with pytest.raises(InputError, match="Found accuracy; expected loss or rmse"):
        trainer.fit(
            table,
            global_batch_size=8,
            epochs=1,
            validate=table,
            early_stopping=EarlyStopping(metric="accuracy", patience=1),
        )
