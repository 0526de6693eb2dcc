"""Training: the same on any number of ranks, exact when resumed, and clear when it cannot go on."""

from __future__ import annotations

import json
import os
import signal

import h5py
import numpy as np
import pytest

from hpdl_mpi import nn, optim
from hpdl_mpi.base.errors import InputError, TrainingError
from hpdl_mpi.comm import SingleCommunicator, run_threads
from hpdl_mpi.data import Transform
from hpdl_mpi.train import Checkpoint, Parallel, Trainer
from hpdl_mpi.train.signals import Stopped
from tests.training_cases import (
    CLASSES,
    NUM_SAMPLES,
    fit_images,
    make_trainer,
    read_metrics,
    step_losses,
    write_images,
    write_table,
)


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images.h5")


def metrics_but_times(folder):
    """Return all lines of a run's metrics, without what no two runs have alike."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if key not in ("seconds", "samples_per_second")} for line in lines]


@pytest.fixture
def alone(images, tmp_path):
    """A run on one rank that the others are held against: its folder and its summary."""
    folder = tmp_path / "alone"
    return folder, fit_images(make_trainer(SingleCommunicator()), images, folder)


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


class StopAfter(nn.CrossEntropy):
    """Sends this process a signal in a given call that trains."""

    def __init__(self, calls, number=signal.SIGTERM):
        super().__init__()
        self.calls, self.number = calls, number

    def __call__(self, outputs, targets, scale, ctx):
        self.calls -= ctx.batch.saving
        if self.calls == 0:
            os.kill(os.getpid(), self.number)
            self.calls = -1
        return super().__call__(outputs, targets, scale, ctx)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
@pytest.mark.parametrize("step", [1, 4, 6, 8, 11])
def test_a_stopped_and_resumed_run_ends_with_the_same_bits(alone, images, tmp_path, step, number):
    folder = tmp_path / "stopped"
    settings = {"checkpoint": Checkpoint(signal="SIGUSR2")}
    rehearsal = 1
    trainer = make_trainer(SingleCommunicator(), loss=StopAfter(step + rehearsal, number))
    with pytest.raises(Stopped, match=f"after step {step}.*--resume") as caught:
        fit_images(trainer, images, folder, **settings)
    assert caught.value.exit_code == 128 + number
    assert not (folder / "summary.json").exists()
    resumed = fit_images(make_trainer(SingleCommunicator()), images, folder, resume=True, **settings)
    assert resumed["parameters_digest"] == alone[1]["parameters_digest"]
    assert resumed["train_loss"] == alone[1]["train_loss"]
    assert metrics_but_times(folder) == metrics_but_times(alone[0])


@pytest.mark.parametrize("step", [3, 4, 6])
def test_no_evaluation_is_lost_by_a_stop(images, tmp_path, step):
    whole = tmp_path / "whole"
    fit_images(make_trainer(SingleCommunicator()), images, whole, eval_every=3)
    folder = tmp_path / "stopped"
    with pytest.raises(Stopped):
        fit_images(make_trainer(SingleCommunicator(), loss=StopAfter(step + 1)), images, folder, eval_every=3)
    fit_images(make_trainer(SingleCommunicator()), images, folder, eval_every=3, resume=True)
    assert [line["step"] for line in read_metrics(whole, "test")] == [3, 6, 9, 12]
    assert metrics_but_times(folder) == metrics_but_times(whole)


@pytest.mark.parametrize(
    ("trainer", "fit", "key"),
    [
        ({"seed": 1}, {}, "seed"),
        ({"dtype": "float32"}, {}, r"training\.dtype"),
        ({"optimizer": optim.SGD(0.1)}, {}, "optimizer's state"),
        ({}, {"global_batch_size": 8}, r"training\.global_batch_size"),
        ({}, {"shuffle": "none"}, r"data\.shuffle"),
        ({}, {"transform": Transform(scale=1 / 128)}, r"data\.transform"),
    ],
)
def test_a_run_does_not_go_on_with_another_recipe(images, tmp_path, trainer, fit, key):
    with pytest.raises(Stopped):
        fit_images(make_trainer(SingleCommunicator(), loss=StopAfter(7)), images, tmp_path / "run")
    with pytest.raises(InputError, match=rf"{key}: a run cannot change this when it goes on"):
        fit_images(make_trainer(SingleCommunicator(), **trainer), images, tmp_path / "run", resume=True, **fit)


@pytest.mark.parametrize(
    ("key", "value"),
    [("epochs", 0), ("epochs", 1.5), ("eval_every", 0), ("global_batch_size", 0), ("global_batch_size", 2.5)],
)
def test_impossible_lengths_are_refused(images, key, value):
    with pytest.raises(InputError, match=rf"training\.{key}: out of range\. Found {value}; expected an integer"):
        fit_images(make_trainer(SingleCommunicator()), images, **{key: value})


def test_a_trainer_that_found_bad_data_can_train_on_mended_ones(images):
    with h5py.File(images, "r+") as file:
        labels = file["y"][()]
        file["y"][...] = 77
    trainer = make_trainer(SingleCommunicator())
    with pytest.raises(InputError, match="outside the classes"):
        fit_images(trainer, images)
    with h5py.File(images, "r+") as file:
        file["y"][...] = labels
    assert fit_images(trainer, images)["steps"] == 12


def test_a_test_loss_that_is_no_number_is_reported_and_nothing_is_lost(tmp_path):
    train, test = write_table(tmp_path / "train.h5"), write_table(tmp_path / "test.h5")
    with h5py.File(test, "r+") as file:
        file["y"][3] = np.nan
    trainer = Trainer(nn.Linear(1), loss=nn.MeanSquaredError(), optimizer=optim.SGD(1e-9), comm=SingleCommunicator())
    folder = tmp_path / "run"
    with pytest.raises(TrainingError, match=r"the test loss nan.*Look for bad values in the test data"):
        trainer.fit(train, global_batch_size=10, epochs=1, validate=test, run_dir=folder)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-0000000005"]
    assert read_metrics(folder, "test")[0]["loss"] is None


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


def test_metrics_after_the_last_checkpoint_are_dropped_when_resumed(alone, images, tmp_path):
    folder = tmp_path / "crashed"
    with pytest.raises(Stopped):
        fit_images(make_trainer(SingleCommunicator(), loss=StopAfter(7)), images, folder)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(
            '{"kind": "step", "step": 7, "lost": 1}\n{"kind": "step", "step": 6, "lost": tr'
        )  # what a crash leaves
    fit_images(make_trainer(SingleCommunicator()), images, folder, resume=True)
    assert metrics_but_times(folder) == metrics_but_times(alone[0])


def test_a_signal_before_the_first_step_stops_the_run_after_it(images, tmp_path):
    trainer = make_trainer(SingleCommunicator())
    build = trainer.model.build
    trainer.model.build = lambda shape: (os.kill(os.getpid(), signal.SIGUSR1), build(shape))[1]
    with pytest.raises(Stopped, match="stopped by SIGUSR1 after step 1"):
        fit_images(trainer, images, tmp_path / "run")


def test_handlers_of_signals_are_put_back(images):
    before = signal.getsignal(signal.SIGTERM)
    fit_images(make_trainer(SingleCommunicator()), images, epochs=1)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_finished_run_can_be_resumed_for_longer(images, tmp_path):
    # A constant rate: a schedule of the whole length would differ from the start.
    settings = {"lr_schedule": optim.Constant()}
    whole = fit_images(make_trainer(SingleCommunicator(), **settings), images, tmp_path / "whole", epochs=3)
    fit_images(make_trainer(SingleCommunicator(), **settings), images, tmp_path / "parts", epochs=1)
    parts = fit_images(make_trainer(SingleCommunicator(), **settings), images, tmp_path / "parts", resume=True)
    assert parts["parameters_digest"] == whole["parameters_digest"]


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


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_loss_that_is_not_finite_ends_the_run_on_all_ranks_alike(images, tmp_path, num_ranks):
    folder = tmp_path / "run"
    trainer_of = lambda comm: make_trainer(comm, optimizer=optim.SGD(1e200), clip_norm=None, lr_schedule=None)  # noqa: E731

    def run(comm):
        with pytest.raises(TrainingError) as caught:
            fit_images(trainer_of(comm), images, folder)
        assert caught.value.shared
        return str(caught.value)

    messages = run_threads(num_ranks, run)
    assert len(set(messages)) == 1
    assert "the loss is nan in step" in messages[0]
    assert "Lower optimizer.lr" in messages[0]


@pytest.mark.parametrize("part", ["training", "evaluation", "first step"])
def test_a_label_outside_the_classes_is_named_with_its_file_and_sample(images, tmp_path, part):
    folder = tmp_path / "shards"
    folder.mkdir()
    for index in range(2):
        write_images(folder / f"part-{index}.h5", seed=index)
    with h5py.File(folder / "part-1.h5", "r+") as file:
        file["y"][slice(None) if part == "first step" else 30] = 77
    where = rf"part-1\.h5: sample {'[0-9]+' if part == 'first step' else '30'}"
    train, test = (images, folder) if part == "evaluation" else (folder, images)
    with pytest.raises(
        InputError, match=rf"{where}: data\.targets: a label is outside the classes\. Found 77; expected"
    ):
        fit_images(make_trainer(SingleCommunicator(), accumulate=2), train, validate=test)


def test_fewer_samples_than_ranks_are_refused(tmp_path):
    few = write_images(tmp_path / "few.h5", num_samples=2)

    def run(comm):
        with pytest.raises(
            InputError, match=r"few\.h5: fewer samples than ranks.*Found 2 samples; expected at least 3"
        ):
            fit_images(make_trainer(comm), few)

    run_threads(3, run)


def test_targets_that_do_not_fit_the_loss_are_refused(tmp_path):
    table = write_table(tmp_path / "table.h5")
    trainer = Trainer(nn.Linear(2), loss=nn.CrossEntropy(), optimizer=optim.SGD(0.1), comm=SingleCommunicator())
    with pytest.raises(InputError, match=r"cross_entropy takes class numbers\. Found float32"):
        trainer.fit(table, epochs=1, global_batch_size=8)


def test_a_grid_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"parallel\.dp"):
        make_trainer(SingleCommunicator(), parallel=Parallel(dp=2, threads=1))


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


def test_a_signal_in_the_last_step_lets_the_run_end(alone, images, tmp_path):
    summary = fit_images(make_trainer(SingleCommunicator(), loss=StopAfter(12 + 1)), images, tmp_path / "run")
    assert summary["parameters_digest"] == alone[1]["parameters_digest"]
    assert summary["epochs"] == 3


@pytest.mark.parametrize("every", [None, 4])
def test_an_epoch_that_a_checkpoint_ends_counts_when_resumed(alone, images, tmp_path, every):
    folder = tmp_path / "stopped"
    settings = {"checkpoint": Checkpoint(every=every)}
    with pytest.raises(Stopped, match="after step 4"):
        fit_images(make_trainer(SingleCommunicator(), loss=StopAfter(4 + 1)), images, folder, **settings)
    resumed = fit_images(make_trainer(SingleCommunicator()), images, folder, resume=True, **settings)
    for key in ("epochs", "train_loss", "test_loss", "parameters_digest"):
        assert resumed[key] == alone[1][key]
    assert [line["epoch"] for line in read_metrics(folder, "epoch")] == [1, 2, 3]


def test_a_run_that_failed_before_its_first_step_can_be_started_again(images, tmp_path):
    with h5py.File(images, "r+") as file:
        label, file["y"][:] = file["y"][()], 77
    with pytest.raises(InputError, match="outside the classes"):
        fit_images(make_trainer(SingleCommunicator()), images, tmp_path / "run")
    with h5py.File(images, "r+") as file:
        file["y"][:] = label
    assert fit_images(make_trainer(SingleCommunicator()), images, tmp_path / "run")["steps"] == 12


def test_resuming_what_has_not_begun_begins_it(alone, images, tmp_path):
    summary = fit_images(make_trainer(SingleCommunicator()), images, tmp_path / "new", resume=True)
    assert summary["parameters_digest"] == alone[1]["parameters_digest"]


def test_a_run_goes_on_with_moved_data_but_not_with_others(images, tmp_path):
    folder = tmp_path / "run"
    fit_images(make_trainer(SingleCommunicator()), images, folder, epochs=1)
    moved = images.rename(tmp_path / "moved.h5")
    assert fit_images(make_trainer(SingleCommunicator()), moved, folder, epochs=2, resume=True)["epochs"] == 2
    others = write_images(tmp_path / "others.h5", num_samples=NUM_SAMPLES + 1)
    with pytest.raises(InputError, match=r"others\.h5: the training data are not those that the run began with"):
        fit_images(make_trainer(SingleCommunicator()), others, folder, epochs=3, resume=True)


def test_ranks_that_see_different_data_are_named(images, tmp_path):
    other = write_images(tmp_path / "other.h5", num_samples=NUM_SAMPLES + 1)

    def run(comm):
        with pytest.raises(InputError, match=r"ranks see different data\. Found a difference of rank 1 to rank 0"):
            fit_images(make_trainer(comm), other if comm.rank == 1 else images)

    run_threads(3, run)


@pytest.mark.parametrize(
    ("trainer", "fit", "key"),
    [
        ({"accumulate": 2}, {}, "parallel"),
        ({"optimizer": optim.SGD(0.2)}, {}, "optimizer"),
        ({}, {"global_batch_size": 8}, "global_batch_size"),
        ({}, {"validate": None}, "validate"),
        ({}, {"run_dir": None}, "run_dir"),
        ({}, {"epochs": None, "steps": 3}, "epochs"),
    ],
)
def test_ranks_that_train_in_different_ways_are_named(images, tmp_path, trainer, fit, key):
    def run(comm):
        differs = comm.rank == 1
        with pytest.raises(
            InputError, match=rf"fit: {key}: ranks train in different ways\. Found .* on rank 1; expected"
        ):
            fit_images(
                make_trainer(comm, **(trainer if differs else {})),
                images,
                **({"run_dir": tmp_path / "run"} | (fit if differs else {})),
            )

    run_threads(3, run)


def test_ranks_that_build_different_models_are_named(images):
    def run(comm):
        trainer = make_trainer(comm)
        if comm.rank == 2:
            trainer.model = nn.Sequential(nn.Flatten(), nn.Linear(CLASSES))
        with pytest.raises(InputError, match=r"built different models or optimizers\. Found a difference of rank 2"):
            fit_images(trainer, images)

    run_threads(3, run)


def test_ranks_that_begin_with_different_parameters_are_named(images):
    def run(comm):
        with pytest.raises(InputError, match=r"different parameters\. Found a difference of rank 1, 2 to rank 0"):
            fit_images(make_trainer(comm, seed=comm.rank), images)

    run_threads(3, run)


def test_a_run_folder_that_a_rank_does_not_share_is_refused(images, tmp_path):
    def run(comm):
        with pytest.raises(InputError, match=r"do not share the run folder\. Found a difference of rank 1 to rank 0"):
            fit_images(make_trainer(comm), images, tmp_path / f"node-{comm.node}")

    run_threads(3, run, nodes=[0, 1, 0])


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


def test_a_trainer_trains_once(images):
    trainer = make_trainer(SingleCommunicator())
    fit_images(trainer, images, epochs=1)
    with pytest.raises(RuntimeError, match="make a new one"):
        fit_images(trainer, images, epochs=1)


def test_lost_metrics_do_not_spoil_what_follows(images, tmp_path):
    folder = tmp_path / "run"
    fit_images(make_trainer(SingleCommunicator()), images, folder, epochs=1)
    (folder / "metrics.jsonl").unlink()
    fit_images(make_trainer(SingleCommunicator()), images, folder, resume=True)
    assert len(step_losses(folder)) == 8
