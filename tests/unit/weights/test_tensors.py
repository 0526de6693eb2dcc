"""Names and layouts at the border: as PyTorch would have them, and back without a bit lost."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest

from hpdl_mpi import nn
from hpdl_mpi.base.errors import InputError
from hpdl_mpi.models import lenet, resnet20
from hpdl_mpi.nn import Layer, Shape
from hpdl_mpi.nn.flat import FlatShape, images_in
from hpdl_mpi.parallel.pipeline import cut
from hpdl_mpi.weights import Tensor, counters, tensors

IMAGE = (2, 3, 4)


def built(model: Layer, shape: Shape = IMAGE) -> Layer:
    model.build(shape)
    return model


def tensor_of(model: Layer, name: str, shape: Shape = IMAGE) -> Tensor:
    return tensors(built(model, shape))[name]


def features_first(images: list[Shape]) -> list[int]:
    """Return, naively, which of our features stands at each place of PyTorch's."""
    order, start = [], 0
    for height, width, channels in images:
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    order.append(start + (i * width + j) * channels + c)
        start += height * width * channels
    return order


def numbered(shape: Shape) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float64).reshape(shape)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolutions_have_their_channels_before_their_rows(groups: int) -> None:
    tensor = tensor_of(nn.Conv2d(8, (3, 2), padding=1, groups=groups), "weight")
    ours = numbered((8, 3, 2, 4 // groups))
    assert tensor.shape == (8, 4 // groups, 3, 2)
    theirs = tensor.outward(ours)
    for o, i, r, s in np.ndindex(tensor.shape):
        assert theirs[o, i, r, s] == ours[o, r, s, i]


BETWEEN: dict[str, Callable[[], list[Layer]]] = {
    "nothing": lambda: [nn.Flatten()],
    "what keeps a shape": lambda: [nn.Flatten(), nn.Dropout(0.5), nn.ReLU(), nn.Softmax(), nn.BatchNorm2d()],
    "a second Flatten": lambda: [nn.ReLU(), nn.Flatten(), nn.Flatten()],
    "containers": lambda: [nn.Sequential(nn.Recompute(nn.Flatten())), nn.Sequential(nn.Tanh())],
    "a sum that keeps the order": lambda: [nn.Flatten(), nn.Residual(nn.Tanh())],
}


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
def test_linear_after_flatten_reads_channels_first(between: Callable[[], list[Layer]]) -> None:
    tensor = tensor_of(nn.Sequential(*between(), fc=nn.Linear(5)), "fc.weight")
    ours = numbered((5, 24))
    np.testing.assert_array_equal(tensor.outward(ours), ours[:, features_first([IMAGE])])
    assert tensor.shape == (5, 24)


def test_normalisation_after_flatten_is_permuted_too() -> None:
    found = tensors(built(nn.Sequential(nn.Flatten(), nn.BatchNorm2d())))
    for name in ("1.weight", "1.bias", "1.running_mean", "1.running_var"):
        np.testing.assert_array_equal(found[name].outward(numbered((24,))), features_first([IMAGE]))


def test_branches_of_flattened_images_are_permuted_each() -> None:
    wide, narrow = nn.Sequential(nn.Conv2d(3, 1), nn.Flatten()), nn.Sequential(nn.Flatten(), nn.Linear(6))
    tensor = tensor_of(nn.Sequential(nn.Parallel(nn.Flatten(), narrow, wide), fc=nn.Linear(2)), "fc.weight")
    ours = numbered((2, 24 + 6 + 18))
    order = features_first([IMAGE, (1, 1, 6), (2, 3, 3)])
    np.testing.assert_array_equal(tensor.outward(ours), ours[:, order])


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ((nn.Flatten(), nn.Linear(7), nn.Linear(5)), IMAGE),
        ((nn.GlobalAvgPool2d(), nn.Linear(5)), IMAGE),
        ((nn.Flatten(), nn.Linear(5)), (28, 28, 1)),
        ((nn.Flatten(), nn.Linear(5)), (1, 1, 9)),
        ((nn.Flatten(), nn.Linear(5)), (6, 7)),
        ((nn.Linear(5),), IMAGE),
        ((nn.BatchNorm2d(),), IMAGE),
    ],
    ids=["a Linear between", "pooled", "grey", "one pixel", "no image", "pixel by pixel", "channels"],
)
def test_other_features_stand_in_the_same_order_here_and_there(layers: tuple[Layer, ...], shape: Shape) -> None:
    *_, last = tensors(built(nn.Sequential(*layers), shape)).values()
    *_, weight = (t for t in tensors(built(nn.Sequential(*layers), shape)).values() if t.name.endswith("weight"))
    for tensor in (weight, last):
        values = numbered(tensor.parameter.shape)
        np.testing.assert_array_equal(tensor.outward(values), values)


@pytest.mark.parametrize("model", [lenet, resnet20])
def test_every_tensor_comes_back_as_it_left(model: Callable[[], Layer]) -> None:
    rng = np.random.default_rng(0)
    for tensor in tensors(built(model(), (28, 28, 3))).values():
        ours = rng.normal(size=tensor.parameter.shape)
        theirs = tensor.outward(ours)
        assert theirs.shape == tensor.shape
        assert theirs.flags.c_contiguous
        assert not np.shares_memory(theirs, ours)
        back = np.empty_like(ours)
        tensor.inward(theirs, back)
        np.testing.assert_array_equal(back, ours)


@pytest.mark.parametrize("cuts", [(1,), (2,), (3,), (1, 2, 3)])
@pytest.mark.parametrize("recompute", ["none", "stage"])
def test_stages_know_what_flattened_images_come_in(cuts: tuple[int, ...], recompute: str) -> None:
    model = nn.Sequential(nn.Conv2d(4, 1), nn.Flatten(), nn.Dropout(), nn.Linear(5))
    stages = cut(model, IMAGE, cuts, recompute)
    whole = tensors(model)
    parts = {name: tensor for stage in stages for name, tensor in tensors(stage.model).items()}
    assert parts == whole
    assert whole["3.weight"].parameter.images == (IMAGE,)


def test_names_are_those_of_torchvision() -> None:
    model = built(resnet20(), (32, 32, 3))
    found = tensors(model)
    assert {"conv1.weight", "bn1.running_var", "layer2.0.downsample.0.weight", "fc.bias"} < found.keys()
    assert "layer3.1.bn2.num_batches_tracked" in counters(model)
    assert not set(counters(model)) & found.keys()


def test_tied_parameters_are_one_with_other_names() -> None:
    model = nn.Sequential(nn.Linear(3), nn.Linear(3), nn.Linear(3)).tie("2.weight", to="0.weight")
    found = tensors(built(model, (3,)))
    assert found["0.weight"].aliases == ("2.weight",)
    assert "2.weight" not in found
    assert found["1.weight"].aliases == ()


@pytest.mark.parametrize(
    ("model", "where"),
    [
        (nn.Sequential(nn.Flatten(), sum=nn.Residual(nn.Linear(24))), r"sum \(Residual\)"),
        (nn.Sequential(nn.Flatten(), norm=nn.GroupNorm(2)), r"norm \(GroupNorm\)"),
        (
            nn.Sequential(nn.Flatten(), one=nn.Linear(24), two=nn.Linear(24)).tie("two.weight", to="one.weight"),
            r"two \(Linear\)",
        ),
    ],
    ids=["sum", "groups", "tied"],
)
def test_what_computes_something_else_there_is_refused(model: Layer, where: str) -> None:
    with pytest.raises(InputError, match=rf"^layer {where}: has no twin in PyTorch"):
        tensors(built(model))
    tensors(built(model, (24,)))  # no images, no order
    assert counters(model) == []


def test_the_shape_of_flattened_samples_is_a_shape_like_others() -> None:
    shape = nn.Flatten().output_shape(IMAGE)
    assert shape == (24,)
    assert {shape: 1}[(24,)] == 1
    assert images_in(shape) == (IMAGE,)
    assert images_in(nn.Dropout().output_shape(shape)) == (IMAGE,)
    assert images_in((24,)) == images_in(nn.Linear(24).output_shape(shape)) == ()
    assert copy.copy(shape).images == copy.deepcopy(shape).images == (IMAGE,)
    assert np.zeros((2, *shape)).shape == (2, 24)
    assert FlatShape([IMAGE, (1, 1, 5)]) == (29,)
