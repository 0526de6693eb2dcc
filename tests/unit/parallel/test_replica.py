"""A rank's replica of the model: what it refuses to read, and to be."""

from __future__ import annotations

import numpy as np
import pytest

from hpdl_mpi import nn, optim
from hpdl_mpi.base import memory
from hpdl_mpi.base.errors import InputError
from hpdl_mpi.parallel import Replica

SAMPLES = np.ones((4, 6), np.float32)


@pytest.fixture
def replica() -> Replica:
    return Replica(nn.Linear(2), (3,), optim.SGD(0.1), dtype=np.float32, seed=0)


@pytest.mark.parametrize(
    "inputs",
    [SAMPLES, SAMPLES[:, :3].astype(np.float64), SAMPLES[:, ::2], np.asfortranarray(SAMPLES[:, :3])],
    ids=["other shape", "other dtype", "every other column", "Fortran order"],
)
def test_samples_that_kernels_would_misread_are_refused(replica: Replica, inputs: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"inputs: the model cannot take these samples"):
        replica.predict(inputs, np.arange(4))
    assert replica.pool.bytes_live == 0


def test_a_replica_that_begins_anew_has_nothing_left_over(replica: Replica) -> None:
    replica.carried = np.ones_like(replica.grads)
    replica.reset()
    assert replica.carried is None


def test_a_model_that_does_not_fit_into_memory_is_refused_before_any_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def allocated(*_: object) -> None:
        raise AssertionError("memory was asked for")

    monkeypatch.setattr(nn.Layout, "allocate", allocated)
    # (2^24 * 2^20 weights + 2^24 biases) * 4 bytes, four times: parameters, gradients and Adam's two slots
    expected = f"expected {(2**44 + 2**24) * 16:,} bytes"
    remedy = r"Take a smaller model, cut it over more ranks and nodes by a pipeline \(parallel\.pp\), or start fewer"
    with pytest.raises(InputError, match=rf"parameters, gradients and optimizer state\. .*{expected}\. {remedy}"):
        Replica(nn.Linear(2**24), (2**20,), optim.Adam(0.1), dtype=np.float32, seed=0)


def test_ranks_of_a_node_need_memory_together(monkeypatch: pytest.MonkeyPatch) -> None:
    # 3 * 2 weights and 2 biases, each from 128 bytes on: with gradients 2 * 2 * 32 * 4 bytes, for each of 64 ranks.
    need = 64 * 512
    for left, ranks in ((need, 64), (need - 1, 63), (0, 0)):
        monkeypatch.setattr(memory, "available", lambda left=left: left)
        Replica(nn.Linear(2), (3,), optim.SGD(0.1), dtype=np.float32, seed=0, ranks_on_node=ranks)
    monkeypatch.setattr(memory, "available", lambda: need - 1)
    with pytest.raises(InputError, match=f"of 64 ranks. Found {need - 1:,} bytes; expected {need:,} bytes"):
        Replica(nn.Linear(2), (3,), optim.SGD(0.1), dtype=np.float32, seed=0, ranks_on_node=64)


@pytest.mark.parametrize(
    ("key", "setting"),
    [("training.dtype", {"dtype": dtype}) for dtype in (np.float16, np.int64, "float99", 3)]
    + [("seed", {"seed": seed}) for seed in (-1, 0.5, "0", None)],
)
def test_impossible_settings_are_refused(key: str, setting: dict) -> None:
    with pytest.raises(InputError, match=f"^{key}: out of range"):
        Replica(nn.Linear(2), (3,), optim.SGD(0.1), **{"dtype": np.float32, "seed": 0} | setting)


def test_model_that_a_living_replica_holds_is_refused(replica: Replica) -> None:
    model, params = replica.model, replica.params.copy()
    for other in (model, nn.Sequential(nn.ReLU(), model)):
        with pytest.raises(InputError, match=r"another trainer holds it already\. Make the model anew"):
            Replica(other, (3,), optim.SGD(0.1), dtype=np.float32, seed=1)
    assert np.shares_memory(model.params["weight"], replica.params)
    np.testing.assert_array_equal(replica.params, params)


def test_model_is_free_again_when_its_replica_is_gone_or_lets_go_of_it() -> None:
    model = nn.Sequential(nn.Linear(2), nn.ReLU())
    for seed in (0, 1):
        Replica(model, (3,), optim.SGD(0.1), dtype=np.float32, seed=seed)
    holding = Replica(model, (3,), optim.SGD(0.1), dtype=np.float32, seed=2)
    holding.release()
    successor = Replica(model, (3,), optim.SGD(0.1), dtype=np.float32, seed=3)
    holding.release()
    with pytest.raises(InputError, match="another trainer holds it already"):
        Replica(successor.model, (3,), optim.SGD(0.1), dtype=np.float32, seed=4)


def test_layer_without_parameters_may_be_of_several_models() -> None:
    activation = nn.ReLU()
    models = [nn.Sequential(nn.Linear(2), activation) for _ in range(2)]
    replicas = [Replica(model, (3,), optim.SGD(0.1), dtype=np.float32, seed=0) for model in models]
    assert replicas[0].params.tolist() == replicas[1].params.tolist()
