"""Weights that leave one run and begin another: bit for bit, on any grid."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from hpdl_mpi import nn
from hpdl_mpi.base.errors import InputError, StorageError
from hpdl_mpi.comm import Communicator, SingleCommunicator, run_threads
from hpdl_mpi.train import Parallel, Trainer
from hpdl_mpi.train.signals import Stopped
from tests.training_cases import CLASSES, StopAfter, fit_images, make_trainer

GRIDS = [(1, {}), (2, {}), (2, {"pp": 2, "cuts": [3]}), (4, {"pp": 2, "cuts": [2]}), (3, {"pp": 3, "cuts": [1, 4]})]


def trainer_of(
    comm: Communicator, *, classes: int = CLASSES, ema: float | None = None, loss: nn.Loss | None = None, **parallel
) -> Trainer:
    convolution = {"conv": nn.Conv2d(4, 3), "norm": nn.BatchNorm2d(activation="relu")}
    model = nn.Sequential(**convolution, flat=nn.Flatten(), drop=nn.Dropout(0.2), fc=nn.Linear(classes))
    changes = {"loss": loss} if loss else {}
    return make_trainer(comm, model=model, ema=ema, parallel=Parallel(threads=1, **parallel), **changes)


@pytest.fixture
def trained(images, tmp_path):
    """A trainer after an epoch, and the file that it exports."""
    trainer = trainer_of(SingleCommunicator())
    fit_images(trainer, images, tmp_path / "trained", epochs=1)
    path = tmp_path / "weights.safetensors"
    trainer.export(path)
    return trainer, path


def begun(comm: Communicator, images, init, **changes) -> Trainer:
    """Return a trainer that has taken one step of rate zero from a file's weights."""
    trainer = trainer_of(comm, **changes)
    trainer._assembly.optimizer.lr = trainer._assembly.optimizer.weight_decay = 0.0
    fit_images(trainer, images, epochs=None, steps=1, init=init)
    return trainer


@pytest.mark.parametrize(("num_ranks", "parallel"), GRIDS)
def test_a_run_begins_with_the_bits_of_another_on_any_grid_and_exports_them(
    images, tmp_path, trained, num_ranks, parallel
):
    source, path = trained
    again = tmp_path / "again.safetensors"

    def run(comm: Communicator) -> dict[str, np.ndarray]:
        trainer = begun(comm, images, path, **parallel)
        trainer.export(again)
        return trainer.replica.layout.views(trainer.replica.params)

    for found in run_threads(num_ranks, run):
        for name, values in found.items():
            np.testing.assert_array_equal(values, source.replica.arrays()[name], err_msg=name)
    first, second = load_file(path), load_file(again)
    assert list(first) == list(second)
    assert {"conv.weight", "norm.running_mean", "norm.num_batches_tracked", "fc.bias"} < first.keys()
    assert (first["norm.num_batches_tracked"], second["norm.num_batches_tracked"]) == (4, 1)
    for name in source.replica.layout.views(source.replica.params):
        np.testing.assert_array_equal(first[name], second[name])


def test_moving_averages_are_exported_unless_told(images, tmp_path):
    trainer = trainer_of(SingleCommunicator(), ema=0.5)
    fit_images(trainer, images, tmp_path / "run", epochs=1)
    trainer.export(tmp_path / "fitted.safetensors")
    for ema in (True, False):
        loaded = trainer_of(SingleCommunicator())
        loaded.load(tmp_path / "run" / "checkpoints" / "step-0000000004", ema=ema)
        loaded.export(tmp_path / f"{ema}.safetensors")
    fitted, averaged, raw = (load_file(tmp_path / f"{name}.safetensors") for name in ("fitted", "True", "False"))
    for name, values in fitted.items():
        np.testing.assert_array_equal(averaged[name], values)
    np.testing.assert_array_equal(raw["fc.bias"], trainer.replica.arrays()["fc.bias"])
    np.testing.assert_array_equal(averaged["fc.bias"], trainer.replica.arrays(averaged=True)["fc.bias"])
    assert not np.array_equal(raw["fc.bias"], averaged["fc.bias"])


def test_a_classifier_can_be_replaced(images, trained):
    source, path = trained
    with pytest.raises(InputError, match=r"different: fc\.weight \(5, 64\), not \(9, 64\), fc\.bias"):
        fit_images(trainer_of(SingleCommunicator(), classes=9), images, epochs=1, init=path)
    trainer, fresh = (trainer_of(SingleCommunicator(), classes=9) for _ in range(2))
    for one, settings in ((trainer, {"init": path, "init_skip": ["fc.*"]}), (fresh, {})):
        one._assembly.optimizer.lr = one._assembly.optimizer.weight_decay = 0.0
        fit_images(one, images, epochs=None, steps=1, **settings)
    found, other = trainer.replica.arrays(), fresh.replica.arrays()
    np.testing.assert_array_equal(found["conv.weight"], source.replica.arrays()["conv.weight"])
    np.testing.assert_array_equal(found["fc.weight"], other["fc.weight"])
    assert not np.array_equal(found["conv.weight"], other["conv.weight"])


def test_what_does_not_fit_is_refused_on_all_ranks_before_the_run_folder_is_taken(images, tmp_path, trained):
    _, path = trained

    def run(comm: Communicator) -> str:
        with pytest.raises(InputError, match="the tensors are not those of the model") as caught:
            fit_images(trainer_of(comm, classes=9, pp=2, cuts=[2]), images, tmp_path / "run", init=path)
        assert caught.value.shared
        return str(caught.value)

    assert len(set(run_threads(2, run))) == 1
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_from_its_checkpoint_without_the_file(images, tmp_path, trained):
    _, path = trained
    whole = fit_images(trainer_of(SingleCommunicator()), images, tmp_path / "whole", init=path)
    other = fit_images(trainer_of(SingleCommunicator()), images, tmp_path / "other")
    assert whole["parameters_digest"] != other["parameters_digest"]
    with pytest.raises(Stopped):
        fit_images(trainer_of(SingleCommunicator(), loss=StopAfter(7)), images, tmp_path / "parts", init=path)
    path.unlink()
    resumed = fit_images(trainer_of(SingleCommunicator()), images, tmp_path / "parts", init=path, resume=True)
    assert resumed["parameters_digest"] == whole["parameters_digest"]


def test_a_file_is_whole_or_as_it_was(tmp_path, trained, monkeypatch):
    trainer, path = trained
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(
        StorageError, match=r"weights\.safetensors: the file could not be written\. Found No space left"
    ):
        trainer.export(path)
    assert path.read_bytes() == before
    assert not [file for file in tmp_path.iterdir() if "part" in file.name]


def test_a_place_where_nothing_can_be_written_is_refused(tmp_path, trained):
    with pytest.raises(InputError, match="cannot be written"):
        trained[0].export(tmp_path / "nowhere" / "w.safetensors")


def test_a_file_says_where_it_comes_from(trained):
    _, path = trained
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    assert (header["format"], header["step"], header["weights"]) == ("pt", "4", "trained")
