"""Compressed sums: what they leave out is carried over, so nothing is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpdl_mpi import nn, optim
from hpdl_mpi.base import memory
from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import Communicator, SingleCommunicator, run_threads
from hpdl_mpi.data import Batch
from hpdl_mpi.kernels.compress import orthonormalize, take_largest
from hpdl_mpi.nn import Context, LossSums
from hpdl_mpi.parallel import ProcessGrid, Replica, TrainingStep
from hpdl_mpi.parallel.feedback import Compression, compressed_sum
from hpdl_mpi.parallel.pipeline import Pipeline, make_schedule
from hpdl_mpi.train import checkpoint
from tests.checkpoint_cases import PROGRESS

KINDS = [Compression("powersgd", rank=2), Compression("top-k", density=0.1)]
every_kind = pytest.mark.parametrize("compression", KINDS, ids=[one.kind for one in KINDS])


def make_replica(compression: Compression | None, dtype: type = np.float64, seed: int = 0) -> Replica:
    model = nn.Sequential(nn.Linear(12), nn.ReLU(), nn.Linear(9), nn.ReLU(), nn.Linear(3))
    return Replica(model, (10,), optim.SGD(0.1, momentum=0.9), dtype=dtype, seed=seed, compression=compression)


class Still(nn.CrossEntropy):
    """A loss whose gradient is zero."""

    def _evaluate(
        self, outputs: np.ndarray, targets: np.ndarray, scale: float, doutputs: np.ndarray, ctx: Context
    ) -> LossSums:
        return super()._evaluate(outputs, targets, 0.0, doutputs, ctx)


@pytest.mark.parametrize("rank", [1, 3, 7])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_columns_become_orthonormal(rank: int, dtype: type) -> None:
    matrix = np.random.default_rng(0).normal(size=(40, rank)).astype(dtype)
    before = matrix.copy()
    orthonormalize(matrix)
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(rank), atol=40 * float(np.finfo(dtype).eps))
    span = matrix @ (matrix.T @ before)
    np.testing.assert_allclose(span, before, atol=400 * float(np.finfo(dtype).eps), err_msg="they span the same")


def test_columns_that_depend_on_others_become_zero() -> None:
    column = np.random.default_rng(0).normal(size=(20, 1)).astype(np.float32)
    matrix = np.hstack([column, 3 * column, np.zeros_like(column)])
    orthonormalize(matrix)
    assert not matrix[:, 1:].any()
    assert np.isfinite(matrix).all()


@pytest.mark.parametrize("values", [[3, -1, 2, -5, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [np.nan, 1, 2, 3, 4]])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_the_largest_are_taken(values: list[float], count: int) -> None:
    array = np.array(values, np.float32)
    sizes = np.sort(np.abs(array))
    places, taken = np.full(count, -1, np.int32), np.zeros(count, np.float32)
    rest = array.copy()
    take_largest(rest, sizes[array.size - count], places, taken)
    if np.isfinite(array).all():
        assert len({*places.tolist()}) == count
        np.testing.assert_array_equal(np.sort(np.abs(taken)), sizes[array.size - count :])
        rest[places] += taken
        np.testing.assert_array_equal(rest, array)
    else:
        assert np.isnan(taken).any() or np.isnan(rest).any()


@every_kind
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_sums_and_what_they_leave_out_are_all_there_is(compression: Compression, num_ranks: int) -> None:
    """Over several steps, on every rank alike."""

    def run(comm: Communicator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        replica = make_replica(compression)
        assert replica.feedback is not None
        grads = replica.grads
        total = compressed_sum(comm, replica.feedback, grads, 0, algorithm="ring", tag=1, label="gradients")
        rng, given, got = np.random.default_rng(comm.rank), np.zeros_like(grads), np.zeros_like(grads)
        for _ in range(5):
            for segment in replica.layout.segments:
                grads[segment.start : segment.stop] = rng.normal(size=segment.stop - segment.start)
            given += grads
            total()
            got += grads
        return given, got, replica.feedback.residual

    results = run_threads(num_ranks, run)
    given, residuals = (sum(result[number] for result in results) for number in (0, 2))
    for _, got, _ in results:
        np.testing.assert_array_equal(got, results[0][1])
        np.testing.assert_allclose(got + residuals, given, atol=1e-12)


def test_products_are_exact_where_matrices_are_thin() -> None:
    """Of rank one, all ranks' alike: a step later nothing is left out."""

    def run(comm: Communicator) -> tuple[np.ndarray, np.ndarray]:
        replica = make_replica(Compression("powersgd", rank=1))
        assert replica.feedback is not None
        grads = replica.grads
        total = compressed_sum(comm, replica.feedback, grads, 0, algorithm="ring", tag=1, label="gradients")
        one = replica.feedback.matrices[0]
        product = np.outer(np.arange(one.rows) + 1.0, np.arange(one.columns) - 2.0)
        part = grads[one.start : one.start + product.size].reshape(product.shape)
        part[:] = product
        total()
        np.testing.assert_allclose(part, comm.size * product, atol=1e-11)
        return part, replica.feedback.residual

    for _, residual in run_threads(2, run):
        np.testing.assert_allclose(residual, 0, atol=1e-11)


def test_matrix_that_begins_with_zeros_is_not_lost() -> None:
    def run(comm: Communicator) -> None:
        replica = make_replica(Compression("powersgd", rank=2))
        assert replica.feedback is not None
        total = compressed_sum(comm, replica.feedback, replica.grads, 0, algorithm="ring", tag=1, label="gradients")
        replica.grads[:] = 0
        total()
        rng = np.random.default_rng(0)
        for segment in replica.layout.segments:
            replica.grads[segment.start : segment.stop] = rng.normal(size=segment.stop - segment.start)
        total()
        for one in replica.feedback.matrices:
            assert replica.grads[one.start : one.start + one.rows * one.columns].any()

    run_threads(2, run)


@every_kind
def test_ranks_that_train_so_stay_alike_and_resume_to_the_bit(compression: Compression, tmp_path: Path) -> None:
    def run(comm: Communicator, steps: list[range]) -> np.ndarray:
        grid = ProcessGrid(comm, {"pp": 1, "dp": comm.size})
        for number, part in enumerate(steps):
            replica = make_replica(compression, np.float32, seed=number)
            path = checkpoint.latest(tmp_path)
            if number:
                assert path is not None
                checkpoint.load(path, replica, place=(comm.rank, comm.size))
            step = TrainingStep(replica, nn.CrossEntropy(), grid, bucket_bytes=300, algorithm="ring")
            for index in part:
                rng = np.random.default_rng((comm.rank, index))
                inputs, targets = rng.normal(size=(3, 10)).astype(np.float32), rng.integers(0, 3, 3)
                batch = Batch(inputs, targets, np.arange(3), global_size=3 * comm.size, offset=3 * comm.rank)
                step(batch, epoch=0, lr=0.1)
            if len(steps) > 1 and number == 0:
                checkpoint.save(tmp_path, replica, PROGRESS, grid, keep=1)
        return replica.params

    whole = run_threads(3, lambda comm: run(comm, [range(6)]))
    stopped = run_threads(3, lambda comm: run(comm, [range(3), range(3, 6)]))
    for params in (*whole, *stopped):
        np.testing.assert_array_equal(params, whole[0])


@every_kind
@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_is_left_out_is_kept_by_any_number_of_ranks(compression: Compression, count: int, tmp_path: Path) -> None:
    def write(comm: Communicator) -> np.ndarray:
        replica = make_replica(compression)
        assert replica.feedback is not None
        for segment in replica.layout.segments:
            part = replica.feedback.residual[segment.start : segment.stop]
            part[:] = np.random.default_rng((comm.rank, segment.start)).normal(size=part.size)
        checkpoint.save(tmp_path, replica, PROGRESS, ProcessGrid(comm, {"pp": 1, "dp": comm.size}), keep=1)
        return replica.feedback.residual

    saved = sum(run_threads(3, write))
    path = checkpoint.latest(tmp_path)
    assert path is not None
    found = np.zeros_like(saved)
    for index in range(count):
        replica = make_replica(compression, seed=5)
        assert replica.feedback is not None
        checkpoint.load(path, replica, place=(index, count))
        found += replica.feedback.residual
    np.testing.assert_allclose(found, saved, atol=1e-14)


@every_kind
@pytest.mark.parametrize("rank", [None, 1, 4])
def test_a_run_that_compresses_in_another_way_adds_what_was_left_out_once(
    compression: Compression, rank: int | None, tmp_path: Path
) -> None:
    """Without a gradient of its own a step's sum, and what it leaves out itself, are together what was left out."""

    def write(comm: Communicator) -> np.ndarray:
        replica = make_replica(compression)
        assert replica.feedback is not None
        for segment in replica.layout.segments:
            replica.feedback.residual[segment.start : segment.stop] = 1.0 + comm.rank
        checkpoint.save(tmp_path, replica, PROGRESS, ProcessGrid(comm, {"pp": 1, "dp": 2}), keep=1)
        return replica.feedback.residual

    left = sum(run_threads(2, write))
    path = checkpoint.latest(tmp_path)
    assert path is not None

    def run(comm: Communicator) -> list[np.ndarray]:
        replica = make_replica(Compression("powersgd", rank=rank) if rank else None, seed=5)
        checkpoint.load(path, replica, place=(comm.rank, 2))
        step = TrainingStep(replica, Still(), ProcessGrid(comm, {"pp": 1, "dp": 2}), algorithm="ring")
        batch = Batch(np.zeros((1, 10)), np.zeros(1, np.int64), np.arange(1), global_size=2, offset=comm.rank)
        sums = []
        for _ in range(2):
            replica.slots["velocity"].fill(0)  # it is the gradient then
            step(batch, epoch=0, lr=0.0)
            kept = replica.feedback.residual if replica.feedback else 0.0
            sums.append((replica.slots["velocity"].copy(), kept + np.zeros_like(left)))
        return sums

    (first, second), (other_first, other_second) = run_threads(2, run)
    np.testing.assert_allclose(first[0] + first[1] + other_first[1], left, atol=1e-12)
    # What a matrix's product leaves out comes with the next step; what is no matrix is not there any more.
    np.testing.assert_allclose(second[0] + second[1] + other_second[1], first[1] + other_first[1], atol=1e-12)


def test_factors_of_another_rank_begin_anew(tmp_path: Path) -> None:
    replica = make_replica(Compression("powersgd", rank=2))
    assert replica.feedback is not None
    replica.feedback.factors += 1
    checkpoint.save(tmp_path, replica, PROGRESS, ProcessGrid(SingleCommunicator(), {"pp": 1, "dp": 1}), keep=1)
    path = checkpoint.latest(tmp_path)
    assert path is not None
    for rank in (1, 2, 3):
        other = make_replica(Compression("powersgd", rank=rank))
        assert other.feedback is not None
        drawn = other.feedback.factors.copy()
        checkpoint.load(path, other, place=(0, 1))
        expected = replica.feedback.factors if rank == 2 else drawn
        np.testing.assert_array_equal(other.feedback.factors, expected)


@pytest.mark.parametrize("compression", [None, KINDS[1]])
def test_what_was_left_out_is_taken_once_and_only_where_it_fits(
    compression: Compression | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = make_replica(KINDS[1])
    assert replica.feedback is not None
    replica.feedback.residual.fill(1)
    checkpoint.save(tmp_path, replica, PROGRESS, ProcessGrid(SingleCommunicator(), {"pp": 1, "dp": 1}), keep=1)
    path = checkpoint.latest(tmp_path)
    assert path is not None
    other = make_replica(compression)
    for _ in range(2):
        checkpoint.load(path, other, place=(0, 1))
        loaded = other.feedback.residual if other.feedback else other.carried
        assert loaded is not None
        assert {value.max() for value in other.layout.views(loaded).values()} == {1}
    needed = 3 * other.params.nbytes * (1 if compression else 2)
    monkeypatch.setattr(memory, "available", lambda: needed - 1)
    with pytest.raises(InputError, match="what sums of the run before have left out, of 3 ranks"):
        checkpoint.load(path, other, place=(0, 1), ranks_on_node=3)


def test_a_tied_parameter_gets_what_was_left_out_once(tmp_path: Path) -> None:
    def make(pipeline: Pipeline | None = None, compression: Compression | None = None) -> Replica:
        layers = [nn.Linear(4) for _ in range(4)]
        model = nn.Sequential(*layers).tie("3.weight", to="0.weight")
        settings = {"dtype": np.float64, "seed": 0, "pipeline": pipeline, "compression": compression}
        return Replica(model, (4,), optim.SGD(0.1), **settings)

    replica = make(compression=KINDS[1])
    assert replica.feedback is not None
    replica.feedback.residual.fill(1)
    checkpoint.save(tmp_path, replica, PROGRESS, ProcessGrid(SingleCommunicator(), {"pp": 1, "dp": 1}), keep=1)
    path = checkpoint.latest(tmp_path)
    assert path is not None

    def load(comm: Communicator) -> dict[str, float]:
        pipeline = Pipeline(comm, make_schedule("1f1b", num_ranks=2, num_microbatches=2), cuts=(2,))
        replica = make(pipeline)
        checkpoint.load(path, replica, place=(0, 1))
        assert replica.carried is not None
        return {name: values.max() for name, values in replica.layout.views(replica.carried).items()}

    first, last = run_threads(2, load)
    assert first["0.weight"] + last["0.weight"] == 1
    assert {*first.values(), *last.values()} == {0.0, 1.0}
