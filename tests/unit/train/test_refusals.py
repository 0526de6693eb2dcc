"""What cannot be trained, or not alike on all ranks, is refused in words that help."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from hpdl_mpi import nn, optim
from hpdl_mpi.base.errors import InputError, TrainingError
from hpdl_mpi.comm import SingleCommunicator, run_threads
from hpdl_mpi.train import Parallel, Trainer
from tests.training_cases import (
    CLASSES,
    NUM_SAMPLES,
    fit_images,
    make_trainer,
    read_metrics,
    write_images,
    write_table,
)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("eval_every", 0),
        ("global_batch_size", 0),
        ("global_batch_size", 2.5),
        ("global_batch_size", None),
    ],
)
def test_impossible_lengths_are_refused(images, key, value):
    with pytest.raises(InputError, match=rf"training\.{key}: out of range\. Found {value}; expected an integer"):
        fit_images(make_trainer(SingleCommunicator()), images, **{key: value})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("transform", 3, "Transform"),
        ("augment", {"flip": True}, "Augment"),
        ("early_stopping", {"patience": 3}, "EarlyStopping"),
        ("checkpoint", 5, "Checkpoint"),
        ("validate", 3, "str or PathLike"),
        ("run_dir", b"x", "str or PathLike"),
    ],
)
def test_arguments_of_another_kind_are_refused(images, key, value, expected):
    with pytest.raises(InputError, match=rf"fit: {key}: of another kind\. Found .*; expected {expected}"):
        fit_images(make_trainer(SingleCommunicator()), images, **{key: value})


@pytest.mark.parametrize("key", ["inputs", "targets"])
@pytest.mark.parametrize("value", [3, np.zeros(3), b"x"])
def test_what_is_no_name_of_an_array_is_refused(images, key, value):
    with pytest.raises(
        InputError, match=rf"^fit: {key}: out of range\. Found .*; expected the name of an array in the"
    ):
        fit_images(make_trainer(SingleCommunicator()), images, **{key: value})


def test_what_is_neither_true_nor_false_is_refused(images, tmp_path):
    trainer = make_trainer(SingleCommunicator())
    with pytest.raises(InputError, match=r"^fit: resume: out of range\. Found 'false'; expected true or false\.$"):
        fit_images(trainer, images, resume="false")
    with pytest.raises(InputError, match=r"^ema: out of range\. Found 'no'; expected true or false\.$"):
        trainer.load(tmp_path, ema="no")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("shuffle", np.array([3, 3]), "block or global or none"),
        ("shuffle", lambda: "block", "block or global or none"),
        ("name", np.array([3, 3]), "a name of letters"),
        ("name", [], "a name of letters"),
        ("name", 1.5, "a name of letters"),
        ("name", "a/../b\n", "a name of letters"),
        ("describe", object(), "a function, or None"),
        ("context", 0, "an integer above 0, or None"),
        ("context", 2.5, "an integer above 0, or None"),
        ("pairs", "yes", "true or false, and not with context"),
        ("bucket", True, "true for pairs"),
        ("bucket", 1, "true for pairs"),
    ],
)
def test_what_a_run_cannot_be_told_is_refused(images, key, value, expected):
    with pytest.raises(InputError, match=rf"^fit: {key}: out of range\. Found .*; expected {expected}"):
        fit_images(make_trainer(SingleCommunicator()), images, **{key: value})


@pytest.mark.parametrize("name", ["lenet", "r\u00e9seau-2.1", "own_model:tiny", "_own.models:tiny"])
def test_a_model_is_named_as_a_job_or_its_factory(images, name):
    assert fit_images(make_trainer(SingleCommunicator()), images, epochs=1, name=name)["model"] == name


@pytest.mark.parametrize("patterns", ["fc.*", 3, [3]])
def test_what_is_no_list_of_patterns_is_refused(images, patterns):
    with pytest.raises(InputError, match=r"fit: init_skip: out of range\. Found .*; expected a list of patterns"):
        fit_images(make_trainer(SingleCommunicator()), images, init_skip=patterns)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("model", nn.ReLU, "Layer"),
        ("loss", "cross_entropy", "Loss"),
        ("optimizer", optim.SGD, "Optimizer"),
        ("lr_schedule", 0.1, "Schedule"),
        ("parallel", {"pp": 1}, "Parallel"),
    ],
)
def test_a_trainer_of_other_parts_is_refused(key, value, expected):
    parts = {"model": nn.Linear(1), "loss": nn.MeanSquaredError(), "optimizer": optim.SGD(0.1)}
    with pytest.raises(InputError, match=rf"Trainer: {key}: of another kind\. Found .*; expected {expected}\."):
        Trainer(**(parts | {key: value}), comm=SingleCommunicator())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        *[("dtype", value, r"training\.dtype: .*float32 or float64") for value in (None, "3", object(), [], np.int8)],
        *[("seed", value, r"seed: .*an integer of at least 0") for value in (None, -1, True, 1.5, "3")],
        *[
            ("clip_norm", value, r"training\.clip_norm: .*a number above 0")
            for value in (np.nan, np.inf, 0, "3", [], True, 10**400)
        ],
        ("comm", 3, r"Trainer: comm: .*Communicator"),
    ],
)
def test_a_trainer_refuses_impossible_settings_when_it_is_made(key, value, message):
    settings = {"loss": nn.MeanSquaredError(), "optimizer": optim.SGD(0.1), "comm": SingleCommunicator()}
    with pytest.raises(InputError, match=f"^{message}\\.$"):
        Trainer(nn.Linear(1), **(settings | {key: value}))


@pytest.mark.parametrize("dtype", ["float64", np.float64, np.dtype("float64")])
def test_a_type_of_numbers_may_be_numpys(images, dtype):
    trainer = make_trainer(SingleCommunicator(), dtype=dtype, seed=np.int64(1), clip_norm=np.float32(1))
    fit_images(trainer, images, epochs=1)
    assert trainer.replica.dtype == np.float64


def test_numbers_may_be_numpys(images, tmp_path):
    trainer = make_trainer(SingleCommunicator(), ema=np.float32(0.5), accumulate=np.int64(2))
    summary = fit_images(
        trainer, images, epochs=None, steps=np.int64(2), global_batch_size=np.int16(4), run_dir=tmp_path / "run"
    )
    assert (summary["steps"], summary["ema"]) == (2, 0.5)


@pytest.mark.parametrize("size", [0, -1, 1.5, None])
def test_an_impossible_batch_size_is_refused(images, size):
    trainer = make_trainer(SingleCommunicator())
    fit_images(trainer, images)
    with pytest.raises(InputError, match=r"^batch_size: out of range\. Found .*; expected an integer above 0"):
        trainer.predict(np.zeros((3, 8, 8)), batch_size=size)
    with pytest.raises(InputError, match=r"^batch_size: out of range\. Found .*; expected an integer above 0"):
        trainer.evaluate(images, batch_size=size)


@pytest.mark.parametrize("inputs", [[[1.0]], np.zeros(3, complex), np.array(["a"])])
def test_what_is_no_array_of_numbers_cannot_be_predicted(images, inputs):
    trainer = make_trainer(SingleCommunicator())
    fit_images(trainer, images)
    with pytest.raises(InputError, match=r"inputs: out of range\. Found .*; expected an array of real numbers"):
        trainer.predict(inputs)


def test_leaving_out_of_no_file_is_refused(images):
    with pytest.raises(InputError, match=r"fit: init_skip: says what is left out of no file\. Give init"):
        fit_images(make_trainer(SingleCommunicator()), images, init_skip=["fc.*"])


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
            InputError, match=rf"(Trainer|fit): {key}: ranks train in different ways\. Found .* on rank 1; expected"
        ):
            fit_images(
                make_trainer(comm, **(trainer if differs else {})),
                images,
                **({"run_dir": tmp_path / "run"} | (fit if differs else {})),
            )

    run_threads(3, run)


def test_ranks_that_build_different_models_are_named(images):
    def run(comm):
        other = {"model": nn.Sequential(nn.Flatten(), nn.Linear(CLASSES))} if comm.rank == 2 else {}
        trainer = make_trainer(comm, **other)
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


def test_a_trainer_trains_once(images):
    trainer = make_trainer(SingleCommunicator())
    fit_images(trainer, images, epochs=1)
    message = (
        r"^fit: the trainer holds a model already\. Found one of step 4; expected .*\. Make a new one to train again"
    )
    with pytest.raises(InputError, match=message):
        fit_images(trainer, images, epochs=1)


@pytest.mark.parametrize(
    "use",
    [
        lambda trainer, data, file: trainer.evaluate(data),
        lambda trainer, data, file: trainer.predict(np.zeros((3, 6, 6, 1))),
        lambda trainer, data, file: trainer.export(file),
        lambda trainer, data, file: trainer.averaged,
    ],
    ids=["evaluate", "predict", "export", "averaged"],
)
def test_a_trainer_without_a_model_says_how_to_get_one(images, tmp_path, use):
    with pytest.raises(InputError) as caught:
        use(make_trainer(SingleCommunicator()), images, tmp_path / "model.safetensors")
    assert str(caught.value) == "Trainer: holds no model yet. Call fit or load first."
