"""The reference models: their shapes, their twins, and that they learn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.models import MODELS, lenet, mlp, mlp_deep, resnet20
from hpdl_mpi.nn import Conv2d, CrossEntropy, Dropout, Layer, Layout, Linear, Shape, make_exact, walk
from hpdl_mpi.optim import SGD
from hpdl_mpi.parallel.pipeline import Feed
from hpdl_mpi.parallel.replica import Replica
from tests import reference as ref


@pytest.mark.parametrize(
    ("name", "num_parameters", "operations"),
    [
        ("mlp", (784 + 1) * 1024 + (1024 + 1) * 1024 + (1024 + 1) * 10, 2 * (784 * 1024 + 1024 * 1024 + 1024 * 10)),
        (
            "lenet",
            (9 + 1) * 32 + (9 * 32 + 1) * 64 + (3136 + 1) * 128 + (128 + 1) * 10,
            2 * (28 * 28 * 9 * 32 + 14 * 14 * 9 * 32 * 64 + 3136 * 128 + 128 * 10),
        ),
    ],
)
def test_models_have_the_size_that_their_names_promise(name: str, num_parameters: int, operations: int) -> None:
    model = MODELS[name]()
    model.build((28, 28, 1))
    assert model.output_shape((28, 28, 1)) == (10,)
    assert Layout(model).num_parameters == num_parameters
    assert model.operations((28, 28, 1)) == operations


def replica(model: Layer, shape: Shape) -> tuple[Replica, dict[str, np.ndarray]]:
    one = Replica(model, shape, SGD(0.1, momentum=0.9), dtype=np.float64, seed=0)
    return one, one.layout.views(one.params)


def test_mlp_is_that_of_its_definition() -> None:
    one, p = replica(mlp(hidden=(4, 3), outputs=2), (3, 2))
    x = np.random.default_rng(0).normal(size=(2, 3, 2))
    h = ref.flatten(x)
    for name in ("1", "3"):
        h = ref.relu(ref.linear(h, p[f"{name}.weight"], p[f"{name}.bias"]))
    expected = ref.linear(h, p["5.weight"], p["5.bias"])
    np.testing.assert_allclose(one.predict(x, np.arange(2)), expected, rtol=0, atol=1e-14)


def test_lenet_is_that_of_its_definition() -> None:
    one, p = replica(lenet(outputs=2, channels=(3, 4), hidden=5), (8, 9, 1))
    h = x = np.random.default_rng(0).normal(size=(2, 8, 9, 1))
    for name in ("0", "3"):
        h = ref.relu(ref.conv2d(h, p[f"{name}.weight"], p[f"{name}.bias"], padding=(1, 1)))
        h = ref.max_pool(h, (2, 2), stride=(2, 2))
    h = ref.relu(ref.linear(ref.flatten(h), p["7.weight"], p["7.bias"]))
    expected = ref.linear(h, p["9.weight"], p["9.bias"])
    np.testing.assert_allclose(one.predict(x, np.arange(2)), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: lenet(channels=3),
            "channels: out of range. Found 3; expected two integers of at least 1, such as (32, 64).",
        ),
        (
            lambda: lenet(channels=(3,)),
            "channels: out of range. Found (3,); expected two integers of at least 1, such as (32, 64).",
        ),
        (
            lambda: mlp(hidden=5),
            "hidden: out of range. Found 5; expected a sequence of integers of at least 1, such as (64, 64).",
        ),
        (
            lambda: mlp(hidden="12"),
            "hidden: out of range. Found '12'; expected a sequence of integers of at least 1, such as (64, 64).",
        ),
        (lambda: mlp_deep(depth=2.5), "depth: out of range. Found 2.5; expected an integer of at least 1."),
        (lambda: mlp_deep(depth=0), "depth: out of range. Found 0; expected an integer of at least 1."),
    ],
)
def test_impossible_arguments_are_refused(make: Callable[[], Layer], message: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value) == message


def test_widths_may_be_numpys() -> None:
    for given in (np.array([4, 3]), [np.int8(4), np.int64(3)]):
        widths = [layer.out_features for layer in walk(mlp(given)) if isinstance(layer, Linear)]
        assert widths == [4, 3, 10]
        assert {type(width) for width in widths} == {int}


def test_dropout_follows_every_hidden_layer_of_an_mlp() -> None:
    kinds = [type(layer).__name__ for layer in walk(mlp(hidden=(4, 3), dropout=0.2))]
    assert kinds == ["Sequential", "Flatten", *["Linear", "ReLU", "Dropout"] * 2, "Linear"]
    assert not any(isinstance(layer, Dropout) for layer in walk(mlp(hidden=(4, 3))))


@pytest.mark.parametrize(
    "model", [mlp(hidden=(16,), outputs=3), lenet(outputs=3, channels=(3, 4), hidden=16)], ids=["mlp", "lenet"]
)
def test_models_learn_a_few_samples_by_heart(model: Layer) -> None:
    rng = np.random.default_rng(0)
    x, targets, ids = rng.normal(size=(6, 8, 8, 1)), np.arange(6) % 3, np.arange(6)
    one, _ = replica(model, (8, 8, 1))
    for _ in range(60):
        sums = one.learn(Feed(ids, x, targets, scale=1 / 6), CrossEntropy())
        one.update(lr=0.1, scale=1.0)
    assert sums.score == 6
    assert sums.loss / 6 < 0.05


@pytest.mark.parametrize("built", [False, True])
def test_all_convolutions_of_a_model_can_be_made_exact(built: bool) -> None:
    model = resnet20()
    if built:
        model.build((32, 32, 3))
        assert "winograd" in _methods(model)
    assert make_exact(model) is model
    if not built:
        model.build((32, 32, 3))
    assert _methods(model) == {"unfolded", "pointwise"}


def _methods(model: Layer) -> set[str]:
    return {layer.method for layer in walk(model) if isinstance(layer, Conv2d)}
