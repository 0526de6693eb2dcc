"""Training on grids of pipelines: the steps of one rank, resumed on other grids, evaluated and predicted."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest

from hpdl_mpi import nn, optim
from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import SingleCommunicator, run_threads
from hpdl_mpi.train import Parallel, Trainer, load_job
from hpdl_mpi.train.checkpoint import latest
from hpdl_mpi.train.choices import read_job
from hpdl_mpi.train.signals import Stopped, StopSignals
from hpdl_mpi.train.summary import summarize
from tests.training_cases import fit_images, make_trainer, step_losses, write_images

GRIDS = [
    (2, {"pp": 2, "schedule": "1f1b"}),
    (2, {"pp": 2, "schedule": "zb-h1", "num_microbatches": 3, "cuts": [1], "recompute": "stage"}),
    (3, {"pp": 3, "schedule": "zb-h2", "num_microbatches": 5, "cuts": [1, 4]}),
    (4, {"pp": 2, "schedule": "gpipe", "num_microbatches": 1, "cuts": [5]}),
    (4, {"pp": 2, "schedule": "zb-v", "num_microbatches": 5, "cuts": [1, 3, 5]}),
    (4, {"pp": 4, "schedule": "1f1b", "num_microbatches": 3, "cuts": [1, 2, 5]}),
    (3, {"pp": 3, "schedule": "interleaved", "num_chunks": 2, "num_microbatches": 6}),
    (1, {"num_microbatches": 4}),
]


def trainer_on(comm, settings, **changes):
    return make_trainer(comm, parallel=Parallel(threads=1, **settings), **changes)


@pytest.mark.parametrize(("num_ranks", "settings"), GRIDS)
def test_every_grid_takes_the_steps_of_one_rank(alone, images, tmp_path, num_ranks, settings):
    folder = tmp_path / "grid"
    summaries = run_threads(num_ranks, lambda comm: fit_images(trainer_on(comm, settings), images, folder))
    # float64, 12 steps: sums of at most 50 terms in another order differ by far less than 1e-9 relative.
    np.testing.assert_allclose(step_losses(folder), step_losses(alone[0]), rtol=1e-9)
    for summary in summaries:
        assert summary["parameters_digest"] == summaries[0]["parameters_digest"]
        assert summary["test_loss"] == pytest.approx(alone[1]["test_loss"], rel=1e-9)
        assert summary["num_parameters"] == alone[1]["num_parameters"]


def test_a_run_goes_on_with_any_other_grid(alone, images, tmp_path):
    folder = tmp_path / "run"
    for number, (num_ranks, settings) in enumerate(GRIDS[:5]):
        summaries = run_threads(
            num_ranks,
            lambda comm, number=number, settings=settings: fit_images(
                trainer_on(comm, settings), images, folder, resume=True, epochs=None, steps=2 * (number + 1)
            ),
        )
        assert summaries[0]["steps"] == 2 * (number + 1)
    # the schedule of rates knows the length of each part, so the steps are not those of one long run
    assert len(step_losses(folder)) == 10
    assert summaries[0]["train_loss"] < 2


def test_a_checkpoint_of_a_pipeline_goes_on_as_if_there_had_been_no_stop(alone, images, tmp_path):
    """A run on one rank, cut by a stop and taken up by pipelines, gives the steps of the run without it."""
    folder = tmp_path / "run"

    def part(comm, settings, **changes):
        return fit_images(trainer_on(comm, settings, **changes), images, folder, resume=True)

    def stop_after(step):
        flags = StopSignals.flags

        def raised(self):
            stop_after.calls += 1
            return tuple(number == 0 and stop_after.calls == step for number in range(len(flags(self))))

        stop_after.calls = 0
        return raised

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopSignals, "flags", stop_after(5))
        with pytest.raises(Stopped):
            part(SingleCommunicator(), {})
    summaries = run_threads(4, lambda comm: part(comm, GRIDS[4][1]))
    np.testing.assert_allclose(step_losses(folder), step_losses(alone[0]), rtol=1e-9)
    assert summaries[0]["test_loss"] == pytest.approx(alone[1]["test_loss"], rel=1e-9)


def test_pipelines_evaluate_and_predict_what_one_rank_does(alone, images):
    folder, _ = alone
    with h5py.File(images) as file:
        samples = file["x"][()]

    def use(comm, settings):
        trainer = trainer_on(comm, settings)
        trainer.load(latest(folder / "checkpoints"))
        return trainer.evaluate(images), trainer.predict(samples)

    ((metrics, outputs),) = [use(SingleCommunicator(), {})]
    for num_ranks, settings in GRIDS:
        for found, predicted in run_threads(num_ranks, lambda comm, settings=settings: use(comm, settings)):
            assert found.loss == pytest.approx(metrics.loss, rel=1e-12)
            assert found.accuracy == metrics.accuracy
            np.testing.assert_array_equal(predicted, outputs)


@pytest.mark.parametrize(
    ("num_ranks", "settings", "message"),
    [
        (8, {"pp": 8}, r"parallel\.pp: more stages than layers\. Found 8 stages, 6 layers.*expected at most 6\."),
        (4, {"pp": 4, "schedule": "zb-v"}, r"Found 8 stages, 6 layers.*expected at most 3, with 2 stages each"),
        (
            2,
            {"pp": 2, "schedule": "best"},
            r"parallel\.schedule: no such schedule\. Found 'best'; expected gpipe, 1f1b",
        ),
        (
            2,
            {"pp": 2, "cuts": [1, 3]},
            r"parallel\.cuts: out of range\. Found \[1, 3\]; expected one fewer than the 2",
        ),
        (2, {"pp": 2, "cuts": [6]}, r"parallel\.cuts: the cuts leave a stage without layers"),
        (2, {"pp": 2, "recompute": "block"}, r"parallel\.recompute: the model has no blocks"),
        (2, {"pp": 2, "memory_limit": "1 KiB"}, r"parallel\.memory_limit: no cuts keep all stages within the memory"),
        (2, {"pp": 2, "cuts": [3], "memory_limit": "1 KiB"}, r"parallel\.cuts: a stage does not fit the memory"),
        (3, {"pp": 2}, r"parallel\.pp: pipelines do not fit the ranks\. Found 2; expected a divisor of 3"),
    ],
)
def test_impossible_pipelines_are_refused_alike_on_all_ranks(images, num_ranks, settings, message):
    def run(comm):
        with pytest.raises(InputError, match=message) as caught:
            fit_images(trainer_on(comm, settings), images)
        assert caught.value.shared

    run_threads(num_ranks, run)


def test_micro_batches_are_asked_for_in_one_place(images):
    with pytest.raises(InputError, match=r"both say into how many micro-batches a batch is cut\. Found 2 and 3"):
        trainer_on(SingleCommunicator(), {"num_microbatches": 3}, accumulate=2)
    with pytest.raises(InputError, match=r"training\.accumulate: out of range"):
        trainer_on(SingleCommunicator(), {}, accumulate=0)


def test_a_memory_limit_makes_micro_batches_smaller(tmp_path):
    """One rank and two: the activations of 64 samples do not fit, those of fewer do."""
    data = write_images(tmp_path / "images.h5", num_samples=64)

    def fit(comm, pp, limit):
        model = nn.Sequential(
            nn.Flatten(), *(layer for _ in range(4) for layer in (nn.Linear(64), nn.Tanh())), nn.Linear(5)
        )
        parallel = Parallel(pp=pp, threads=1, memory_limit=limit)
        trainer = Trainer(model, loss=nn.CrossEntropy(), optimizer=optim.SGD(0.1), parallel=parallel, comm=comm)
        summary = trainer.fit(data, steps=1, global_batch_size=64)
        replica = trainer.replica
        arrays = replica.params.nbytes + replica.grads.nbytes
        return summary["num_microbatches"], arrays + replica.pool.peak_live

    unlimited = run_threads(1, lambda comm: fit(comm, 1, None))[0]
    assert unlimited[0] == 1
    for pp in (1, 2):
        limit = unlimited[1] * 3 // 4 if pp == 1 else unlimited[1] * 45 // 100
        for number, used in run_threads(pp, lambda comm, pp=pp, limit=limit: fit(comm, pp, limit)):
            assert number > 1
            assert used <= limit


def test_a_summary_shows_what_each_stage_takes():
    job = read_job("jobs/mlp_pipeline.toml")
    whole, parts = summarize(job, 1, pp=1), summarize(job, 1)
    assert (whole.stages, whole.bubble) == ([], 0.0)
    assert [row.rank for row in parts.stages] == [0, 1, 2, 3]
    assert [row.held for row in parts.stages] == [4, 3, 2, 1]
    assert (parts.num_microbatches, parts.microbatch_size) == (8, 16)
    assert sum(row.memory.parameters for row in parts.stages) == whole.memory.parameters
    assert sum(row.memory.optimizer for row in parts.stages) == 2 * whole.memory.parameters
    assert parts.memory.total == max(row.memory.total for row in parts.stages)
    assert (parts.stages[0].first, parts.stages[-1].last) == ("0", "9")
    assert 0 < parts.bubble < 1
    both = summarize(load_job("jobs/mlp_pipeline.toml", ["parallel.schedule=zb-v"]), 1, pp=2)
    assert [row.rank for row in both.stages] == [0, 1, 1, 0]
    first, last = both.stages[0].memory.total, both.stages[3].memory.total
    assert both.memory.total in (first + last, both.stages[1].memory.total + both.stages[2].memory.total)


@pytest.mark.parametrize("pp", [1, 2])
def test_a_summary_counts_what_data_parallel_ranks_share_and_carry_over(pp):
    def memory(*overrides):
        cut = [] if pp == 1 else ["parallel.cuts=[3]"]
        settings = ["optimizer.name=adam", "optimizer.weight_decay=0", "parallel.bucket_cap_mb=0.5", *cut, *overrides]
        return summarize(load_job("jobs/mlp_mnist.toml", settings), 4, pp=pp).memory

    whole = memory(f"parallel.pp={pp}")
    assert whole.optimizer == 2 * whole.parameters
    shared = memory(f"parallel.pp={pp}", "parallel.sharding=optimizer")
    assert shared == replace(whole, optimizer=whole.parameters // 2)
    assert memory(f"parallel.pp={pp}", "parallel.compression=powersgd").optimizer == 3 * whole.parameters
    one_copy = memory(f"parallel.pp={pp}", "parallel.shared_memory=parameters")
    assert one_copy == replace(whole, parameters=whole.parameters // 4, optimizer=whole.parameters // 2)
    if pp == 1:
        assert whole.gradients / 4 < memory("parallel.sharding=gradients").gradients < whole.gradients


def test_a_closed_trainer_lets_go_of_its_model(images):
    def run(comm):
        trainer = trainer_on(comm, {"pp": 2})
        fit_images(trainer, images, epochs=1)
        model = trainer.model
        trainer.close()
        with pytest.raises(InputError, match="holds no model"):
            _ = trainer.replica
        settings = {
            "loss": nn.CrossEntropy(),
            "optimizer": optim.SGD(0.1),
            "parallel": Parallel(threads=1),
            "comm": comm,
        }
        fit_images(Trainer(model, **settings), images, epochs=1)

    run_threads(2, run)
