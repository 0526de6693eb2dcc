"""Training: the same on any number of ranks."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from hpdl_mpi import nn, optim
from hpdl_mpi.base.errors import InputError, MismatchError, TrainingError
from hpdl_mpi.comm import SingleCommunicator, run_threads
from hpdl_mpi.comm.threads import ThreadCommunicator, _ThreadWindow
from hpdl_mpi.data import Transform
from hpdl_mpi.parallel import TrainingStep
from hpdl_mpi.train import Checkpoint, Parallel, Trainer
from hpdl_mpi.train.loop import TrainingLoop
from tests.training_cases import (
    CLASSES,
    NUM_SAMPLES,
    fit_images,
    make_trainer,
    read_metrics,
    step_losses,
    write_table,
)


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_any_number_of_ranks_and_microbatches_takes_the_same_steps(alone, images, tmp_path, num_ranks, accumulate):
    folder = tmp_path / "together"
    summaries = run_threads(
        num_ranks, lambda comm: fit_images(make_trainer(comm, accumulate=accumulate), images, folder)
    )
    # float64, 12 steps: sums of at most 50 terms in another order differ by far less than 1e-9 relative.
    np.testing.assert_allclose(step_losses(folder), step_losses(alone[0]), rtol=1e-9)
    assert summaries[0]["test_loss"] == pytest.approx(alone[1]["test_loss"], rel=1e-9)
    assert len({summary["parameters_digest"] for summary in summaries}) == 1


@pytest.mark.parametrize(
    ("accumulate", "changes", "remark"),
    [
        (3, {"global_batch_size": 3}, None),
        (3, {"global_batch_size": 2}, "3 micro-batches share 2 samples: in every step, some of them are empty"),
        (1, {"global_batch_size": NUM_SAMPLES + 1, "steps": 4, "epochs": None}, "is larger than the data"),
        (1, {"steps": 3, "epochs": None}, "the run ends within its warm-up of 3 steps"),
    ],
)
def test_a_run_says_what_may_not_be_meant(images, capsys, accumulate, changes, remark):
    fit_images(make_trainer(SingleCommunicator(), accumulate=accumulate), images, **({"epochs": 1} | changes))
    said = capsys.readouterr().out
    for text in ("micro-batches share", "is larger than the data", "within its warm-up"):
        assert (text in said) == (remark is not None and text in remark)
    assert remark is None or remark in said


@pytest.mark.parametrize(
    ("settings", "nodes", "changes_nothing"),
    [
        ({"compression": "bf16"}, (0, 0), True),
        ({"compression": "bf16"}, (0, 1), True),  # these numbers are float64
        ({"compression": "powersgd", "compression_rank": 1}, (0, 0), False),
        ({"compression": "top-k"}, (0,), True),
        ({"compression": "top-k"}, (0, 0), False),
        ({}, (0, 0), False),
    ],
)
def test_a_run_says_if_compression_changes_nothing(images, capsys, settings, nodes, changes_nothing):
    parallel = Parallel(threads=1, **settings)
    run_threads(
        len(nodes), lambda comm: fit_images(make_trainer(comm, parallel=parallel), images, epochs=1), nodes=nodes
    )
    said = f"parallel.compression = {settings.get('compression')!r} changes nothing: "
    found = capsys.readouterr().out
    assert (said in found) == changes_nothing
    assert ("no gradients are summed over ranks" in found) == (len(nodes) == 1)


def test_a_run_says_if_the_machine_has_too_little_memory_to_share(images, capsys, monkeypatch):
    monkeypatch.setattr(ThreadCommunicator, "shareable_bytes", lambda self: 0)
    run_threads(2, lambda comm: fit_images(make_trainer(comm), images, epochs=1))
    assert "too little memory to share (/dev/shm), or no more windows" in capsys.readouterr().out


def test_a_damaged_table_of_sums_is_refused_before_anything_is_made(images, tmp_path, monkeypatch):
    (tmp_path / "table.json").write_text("{")
    monkeypatch.setenv("HPDL_ALLREDUCE_TABLE", str(tmp_path / "table.json"))
    monkeypatch.setattr(ThreadCommunicator, "share", lambda comm, nbytes: pytest.fail("something was made"))
    with pytest.raises(InputError, match="not a table of all-reduces"):
        run_threads(2, lambda comm: fit_images(make_trainer(comm), images))


def test_calls_are_compared_once_more_at_the_end(images, monkeypatch):
    end = TrainingLoop._note_wall_seconds

    def call_one_more(loop):
        if loop.grid.comm.rank == 1:
            loop.grid.axis("dp").begin_collective("one too many")
        end(loop)

    monkeypatch.setattr(TrainingLoop, "_note_wall_seconds", call_one_more)
    freed = []
    monkeypatch.setattr(TrainingStep, "free", freed.append)
    with pytest.raises(MismatchError, match="rank 1: one too many"):
        run_threads(2, lambda comm: fit_images(make_trainer(comm), images))
    assert not freed, "ranks that differ cannot do that together"


def test_a_run_that_fails_on_all_ranks_gives_back_what_they_share(images, monkeypatch):
    made, freed = [], []
    share, free = ThreadCommunicator.share, _ThreadWindow.free
    monkeypatch.setattr(ThreadCommunicator, "share", lambda comm, nbytes: made.append(1) or share(comm, nbytes))
    monkeypatch.setattr(_ThreadWindow, "free", lambda window: freed.append(1) or free(window))
    optimizer = optim.SGD(1e200)

    def work(comm):
        with pytest.raises(TrainingError, match="finite"):
            fit_images(make_trainer(comm, optimizer=optimizer, clip_norm=None), images)

    run_threads(2, work)
    assert len(made) == len(freed) > 0


def test_a_rank_without_samples_in_a_batch_does_no_harm(images, tmp_path):
    for num_ranks in (1, 3):
        run_threads(
            num_ranks,
            lambda comm, n=num_ranks: fit_images(make_trainer(comm), images, tmp_path / str(n), global_batch_size=2),
        )
    np.testing.assert_allclose(step_losses(tmp_path / "3"), step_losses(tmp_path / "1"), rtol=1e-9)


def test_the_same_job_gives_the_same_bits(alone, images):
    again = fit_images(make_trainer(SingleCommunicator()), images)
    assert again["parameters_digest"] == alone[1]["parameters_digest"]


def test_training_learns(images):
    summary = fit_images(make_trainer(SingleCommunicator()), images, epochs=20)
    assert summary["test_accuracy"] > 0.95
    assert (summary["steps"], summary["epochs"], summary["test_rmse"]) == (80, 20, None)


def test_the_loss_of_an_epoch_is_the_mean_over_its_samples(alone):
    folder, summary = alone
    losses = step_losses(folder)[-4:]
    sizes = [16, 16, 16, NUM_SAMPLES - 48]
    assert summary["train_loss"] == pytest.approx(np.average(losses, weights=sizes), rel=1e-12)


def test_a_checkpoint_knows_how_its_samples_are_prepared(tmp_path):
    table = write_table(tmp_path / "table.h5")

    def make():
        return Trainer(nn.Linear(1), loss=nn.MeanSquaredError(), optimizer=optim.SGD(0.1), comm=SingleCommunicator())

    trained, loaded = make(), make()
    settings = {"transform": Transform(standardize=True), "target_transform": Transform(standardize=True)}
    trained.fit(table, global_batch_size=10, epochs=1, run_dir=tmp_path / "run", **settings)
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    loaded.load(checkpoint)
    with h5py.File(table) as file:
        x = file["x"][()]
    np.testing.assert_array_equal(loaded.predict(x), trained.predict(x))
    assert loaded.evaluate(table) == trained.evaluate(table)


def test_steps_bound_a_run_in_the_middle_of_an_epoch(images, tmp_path):
    summary = fit_images(make_trainer(SingleCommunicator()), images, tmp_path / "run", epochs=None, steps=6)
    assert (summary["steps"], summary["epochs"]) == (6, 1)
    assert summary["test_loss"] is not None


def test_evaluation_and_checkpoints_come_as_often_as_asked(images, tmp_path):
    folder = tmp_path / "run"
    settings = {"eval_every": 5, "checkpoint": Checkpoint(every=3, keep=3)}
    fit_images(make_trainer(SingleCommunicator()), images, folder, **settings)
    assert [line["step"] for line in read_metrics(folder, "test")] == [5, 10, 12]
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == ["step-0000000008", "step-0000000009", "step-0000000012"]


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_regression_is_standardised_and_reported_in_its_own_unit(tmp_path, num_ranks):
    train, test = write_table(tmp_path / "train.h5", 200), write_table(tmp_path / "test.h5", 60, seed=1)
    with h5py.File(test) as file:
        x, y = file["x"][()], file["y"][()]

    def run(comm):
        trainer = Trainer(
            nn.Sequential(nn.Linear(16), nn.Tanh(), nn.Linear(1)),
            loss=nn.MeanSquaredError(),
            optimizer=optim.Adam(0.01),
            parallel=Parallel(threads=1),
            comm=comm,
        )
        standardize = Transform(standardize=True)
        summary = trainer.fit(
            train,
            validate=test,
            epochs=60,
            global_batch_size=32,
            transform=standardize,
            target_transform=standardize,
        )
        rmse = float(np.sqrt(np.mean((trainer.predict(x)[:, 0] - y) ** 2)))
        assert rmse == pytest.approx(summary["test_rmse"], rel=1e-4)
        assert rmse < 0.2 * y.std()
        assert summary["test_accuracy"] is None
        assert trainer.evaluate(test).rmse == pytest.approx(summary["test_rmse"], rel=1e-6)

    run_threads(num_ranks, run)


@pytest.mark.parametrize("batch", [1, 7, NUM_SAMPLES, 1000])
def test_stochastic_mini_batch_and_batch_descent_are_batch_sizes(images, batch):
    summary = fit_images(make_trainer(SingleCommunicator()), images, epochs=1, global_batch_size=batch)
    assert summary["steps"] == -(-NUM_SAMPLES // batch)


def test_class_numbers_may_have_a_dimension_of_their_own(alone, images):
    with h5py.File(images, "r+") as file:
        labels = file["y"][()]
        del file["y"]
        file["y"] = labels[:, None]
    summary = fit_images(make_trainer(SingleCommunicator()), images)
    assert summary["parameters_digest"] == alone[1]["parameters_digest"]


@pytest.mark.parametrize("dtype", [np.float16, ">f4", ">i2", np.uint8])
def test_predictions_take_any_stored_number_type(images, dtype):
    trainer = make_trainer(SingleCommunicator())
    fit_images(trainer, images, epochs=1)
    with h5py.File(images) as file:
        x = file["x"][()]
    np.testing.assert_array_equal(trainer.predict(x.astype(dtype)), trainer.predict(x))


def test_no_samples_have_no_predictions(images):
    trainer = make_trainer(SingleCommunicator())
    fit_images(trainer, images, epochs=1)
    assert trainer.predict(np.empty((0, 6, 6, 1), np.uint8)).shape == (0, CLASSES)


def test_wall_time_counts_without_a_run_folder_and_a_part_of_an_epoch_has_a_loss(images):
    summary = fit_images(make_trainer(SingleCommunicator()), images, epochs=None, steps=2)
    assert summary["wall_seconds"] > 0
    assert summary["train_loss"] > 0
