"""Layers refuse what cannot be: the message says which layer, what was found and what was expected."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.nn import (
    GELU,
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm2d,
    ClassToken,
    Conv2d,
    CrossEntropy,
    CrossLinear,
    Dropout,
    Dropout2d,
    Each,
    FirstStep,
    Flatten,
    GroupNorm,
    Huber,
    Layer,
    LayerNorm,
    LeakyReLU,
    Linear,
    MaxPool2d,
    Parallel,
    ReLU,
    Residual,
    Sequential,
    Shape,
    StochasticDepth,
)
from hpdl_mpi.nn.init import HeUniform

IMAGE = (4, 5, 3)

BUILDS: dict[str, tuple[Callable[[], Layer], Shape, str]] = {
    "a class of a single step": (
        ClassToken,
        (4,),
        "layer net.1 (ClassToken): needs steps. Found samples of shape (4,); expected (steps, dim).",
    ),
    "the first of no steps": (
        FirstStep,
        IMAGE,
        "layer net.1 (FirstStep): needs sequences. Found samples of shape (4, 5, 3); expected (steps, dim).",
    ),
    "queries without a memory": (
        lambda: CrossLinear(2, 4),
        (4, 3),
        "layer net.1 (CrossLinear): needs an array and a memory. Found samples of shape (4, 3); expected two arrays of "
        "equally many features.",
    ),
    "layers for several arrays": (
        lambda: Each(one=ReLU(), other=ReLU()),
        (4,),
        "layer net.1 (Each): there is not a layer for each array. Found samples of shape (4,); expected 2 arrays, for "
        "one, other.",
    ),
    "features as an image": (
        lambda: Conv2d(4, 3),
        (16,),
        "layer net.1 (Conv2d): takes images. Found samples of shape (16,); expected (height, width, channels). "
        'Set data.transform.layout, such as "hw" for images without a channel dimension.',
    ),
    "features to pool": (
        lambda: MaxPool2d(2),
        (16,),
        "layer net.1 (MaxPool2d): takes images. Found samples of shape (16,); expected (height, width, channels). "
        'Set data.transform.layout, such as "hw" for images without a channel dimension.',
    ),
    "kernel above the image": (
        lambda: Conv2d(4, (3, 6)),
        IMAGE,
        "layer net.1 (Conv2d): the window does not fit the image. Found an image of 4 x 5 with padding (0, 0); "
        "expected at least 3 x 6. "
        "Take larger images (data.augment.resized_crop enlarges them), or a model for small ones.",
    ),
    "window above the image": (
        lambda: AvgPool2d(8, padding=1),
        IMAGE,
        "layer net.1 (AvgPool2d): the window does not fit the image. Found an image of 4 x 5 with padding (1, 1); "
        "expected at least 8 x 8. "
        "Take larger images (data.augment.resized_crop enlarges them), or a model for small ones.",
    ),
    "no kernel": (
        lambda: Conv2d(4, 0),
        IMAGE,
        "layer net.1 (Conv2d): there is no such window. Found kernel size (0, 0), stride (1, 1), padding (0, 0); "
        "expected a kernel size and a stride of at least 1, a padding of at least 0.",
    ),
    "half a channel": (
        lambda: Conv2d(3.5, 3),
        IMAGE,
        "layer net.1 (Conv2d): has no output. Found 3.5; expected an integer of at least 1.",
    ),
    "no groups": (
        lambda: Conv2d(4, 3, groups=0),
        IMAGE,
        "layer net.1 (Conv2d): has no groups. Found 0; expected an integer of at least 1.",
    ),
    "groups of different sizes": (
        lambda: Conv2d(4, 3, groups=2),
        IMAGE,
        "layer net.1 (Conv2d): channels do not make groups of one size. Found 3 channels to 4 in 2 groups; expected a "
        "number of groups that divides both.",
    ),
    "no stride": (
        lambda: MaxPool2d(2, stride=(1, 0)),
        IMAGE,
        "layer net.1 (MaxPool2d): there is no such window. Found kernel size (2, 2), stride (1, 0), padding (0, 0); "
        "expected a kernel size and a stride of at least 1, a padding of at least 0.",
    ),
    "negative padding": (
        lambda: Conv2d(4, 3, padding=(0, -1)),
        IMAGE,
        "layer net.1 (Conv2d): there is no such window. Found kernel size (3, 3), stride (1, 1), padding (0, -1); "
        "expected a kernel size and a stride of at least 1, a padding of at least 0.",
    ),
    "window in the padding": (
        lambda: MaxPool2d(3, padding=2),
        IMAGE,
        "layer net.1 (MaxPool2d): a window could lie in the padding alone. Found (2, 2); expected at most half the "
        "kernel size.",
    ),
    "window of too many positions": (
        lambda: MaxPool2d((16, 17)),
        (20, 20, 1),
        "layer net.1 (MaxPool2d): the window is too large. Found (16, 17); expected at most 256 positions.",
    ),
    "features to pool in bins": (
        lambda: AdaptiveAvgPool2d(2),
        (16,),
        "layer net.1 (AdaptiveAvgPool2d): takes images. Found samples of shape (16,); expected (height, width, "
        'channels). Set data.transform.layout, such as "hw" for images without a channel dimension.',
    ),
    "groups to normalise of different sizes": (
        lambda: GroupNorm(2),
        IMAGE,
        "layer net.1 (GroupNorm): channels do not make groups of one size. Found 3 channels in 2 groups; expected a "
        "number of groups that divides them.",
    ),
    "single numbers to normalise": (
        lambda: LayerNorm(),
        (),
        "layer net.1 (LayerNorm): needs channels. Found samples of shape (); expected at least one.",
    ),
    "no numbers to normalise": (
        lambda: BatchNorm2d(),
        (2, 0),
        "layer net.1 (BatchNorm2d): needs channels. Found samples of shape (2, 0); expected at least one.",
    ),
    "single numbers to drop channels of": (
        lambda: Dropout2d(),
        (),
        "layer net.1 (Dropout2d): needs channels. Found samples that are single numbers; expected at least one dim.",
    ),
    "no channels": (
        lambda: Conv2d(0, 3),
        IMAGE,
        "layer net.1 (Conv2d): has no output. Found 0; expected an integer of at least 1.",
    ),
    "no features": (
        lambda: Linear(0),
        IMAGE,
        "layer net.1 (Linear): has no output. Found 0; expected an integer of at least 1.",
    ),
    "single numbers": (
        lambda: Linear(3),
        (),
        "layer net.1 (Linear): needs features. Found samples that are single numbers; expected at least one dim.",
    ),
    "sum of unlike shapes": (
        lambda: Residual(Linear(4), Linear(5)),
        (3,),
        "layer net.1 (Residual): body and shortcut do not add up. Found (4,) and (5,); expected equal shapes.",
    ),
    "sum with an input of another shape": (
        lambda: Residual(Linear(4)),
        (3,),
        "layer net.1 (Residual): body and shortcut do not add up. Found (4,) and (3,); expected equal shapes.",
    ),
    "branches of unlike images": (
        lambda: Parallel(Conv2d(2, 3), Conv2d(2, 1)),
        IMAGE,
        "layer net.1 (Parallel): branches cannot be joined. Found [(2, 3, 2), (4, 5, 2)]; expected shapes that differ "
        "in the last dimension only.",
    ),
    "no branches": (
        lambda: Parallel(),
        IMAGE,
        "layer net.1 (Parallel): branches cannot be joined. Found []; expected shapes that differ in the last "
        "dimension only.",
    ),
    "deep inside": (
        lambda: Residual(Sequential(Flatten(), MaxPool2d(2))),
        IMAGE,
        "layer net.1.body.1 (MaxPool2d): takes images. Found samples of shape (60,); expected (height, width, "
        'channels). Set data.transform.layout, such as "hw" for images without a channel dimension.',
    ),
}


@pytest.mark.parametrize(("make", "shape", "message"), BUILDS.values(), ids=BUILDS)
def test_layer_that_cannot_take_its_input_is_refused(make: Callable[[], Layer], shape: Shape, message: str) -> None:
    model = Sequential(net=Sequential(ReLU(), make()))
    with pytest.raises(InputError) as caught:
        model.build(shape)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dropout(1.0), "layer Dropout: rate out of range. Found 1.0; expected at least 0 and below 1."),
        (lambda: Dropout(-0.1), "layer Dropout: rate out of range. Found -0.1; expected at least 0 and below 1."),
        (
            lambda: Residual(ReLU(), activation=["relu"]),
            "layer Residual: no such activation. Found ['relu']; expected 'relu', 'relu6' or None.",
        ),
        (
            lambda: Residual(ReLU(), ReLU(), names=("a",)),
            "layer Residual: needs two names. Found ('a',); expected those of body and shortcut.",
        ),
        (
            lambda: Residual(ReLU(), names="ab"),
            "layer Residual: needs two names. Found 'ab'; expected those of body and shortcut.",
        ),
        (
            lambda: Residual(ReLU(), names=3),
            "layer Residual: needs two names. Found 3; expected those of body and shortcut.",
        ),
        (
            lambda: Residual(ReLU(), names=("a", 2)),
            "layer Residual: needs two names. Found ('a', 2); expected those of body and shortcut.",
        ),
        (
            lambda: Residual(ReLU(), activation=np.array([3, 3])),
            "layer Residual: no such activation. Found array([3, 3]); expected 'relu', 'relu6' or None.",
        ),
        (
            lambda: BatchNorm2d(activation=np.array([3, 3])),
            "layer BatchNorm2d: no such activation. Found array([3, 3]); expected 'relu', 'relu6' or None.",
        ),
        (
            lambda: GELU(np.array([3, 3])),
            "layer GELU: no such form. Found array([3, 3]); expected 'none' or 'tanh'.",
        ),
        (lambda: Huber(np.float32("inf")), "delta: out of range. Found np.float32(inf); expected a number above 0."),
        (lambda: Dropout("a"), "layer Dropout: rate out of range. Found 'a'; expected at least 0 and below 1."),
        (lambda: Dropout(False), "layer Dropout: rate out of range. Found False; expected at least 0 and below 1."),
        (lambda: LeakyReLU("a"), "layer LeakyReLU: slope out of range. Found 'a'; expected a number of at least 0."),
        (
            lambda: BatchNorm2d(momentum=None),
            "layer BatchNorm2d: momentum out of range. Found None; expected above 0, at most 1.",
        ),
        (lambda: LayerNorm(eps="a"), "layer LayerNorm: eps out of range. Found 'a'; expected a number above 0."),
        (lambda: GroupNorm(0), "layer GroupNorm: has no groups. Found 0; expected an integer of at least 1."),
        (lambda: GroupNorm(2.0), "layer GroupNorm: has no groups. Found 2.0; expected an integer of at least 1."),
        (lambda: CrossEntropy("a"), "label_smoothing: out of range. Found 'a'; expected 0 to below 1."),
        (lambda: Huber(None), "delta: out of range. Found None; expected a number above 0."),
        (lambda: Dropout(np.nan), "layer Dropout: rate out of range. Found nan; expected at least 0 and below 1."),
        (lambda: Dropout2d(1), "layer Dropout2d: rate out of range. Found 1; expected at least 0 and below 1."),
        (
            lambda: StochasticDepth(2.0),
            "layer StochasticDepth: rate out of range. Found 2.0; expected at least 0 and below 1.",
        ),
        (lambda: LayerNorm(eps=0.0), "layer LayerNorm: eps out of range. Found 0.0; expected a number above 0."),
        (lambda: GroupNorm(1, eps=np.nan), "layer GroupNorm: eps out of range. Found nan; expected a number above 0."),
        (lambda: BatchNorm2d(eps=np.inf), "layer BatchNorm2d: eps out of range. Found inf; expected a number above 0."),
        (
            lambda: BatchNorm2d(momentum=0.0),
            "layer BatchNorm2d: momentum out of range. Found 0.0; expected above 0, at most 1.",
        ),
        (
            lambda: BatchNorm2d(activation="tanh"),
            "layer BatchNorm2d: no such activation. Found 'tanh'; expected 'relu', 'relu6' or None.",
        ),
        (
            lambda: Residual(ReLU(), activation="gelu"),
            "layer Residual: no such activation. Found 'gelu'; expected 'relu', 'relu6' or None.",
        ),
        (
            lambda: AdaptiveAvgPool2d((2, 0)),
            "layer AdaptiveAvgPool2d: has no output. Found output size (2, 0); expected at least 1 x 1.",
        ),
        (lambda: Conv2d(4, 3, bias="no"), "layer Conv2d: bias out of range. Found 'no'; expected true or false."),
        (lambda: Conv2d(4, 3, exact=1), "layer Conv2d: exact out of range. Found 1; expected true or false."),
        (lambda: Linear(4, bias=None), "layer Linear: bias out of range. Found None; expected true or false."),
        (
            lambda: Conv2d(4, 3, init=0.1),
            "layer Conv2d: init is no initialiser. Found 0.1; expected one of nn.init, such as nn.init.HeUniform().",
        ),
        (
            lambda: Linear(4, bias_init=HeUniform),
            "layer Linear: bias_init is no initialiser. Found <class 'hpdl_mpi.nn.init.HeUniform'>; "
            "expected one of nn.init, such as nn.init.HeUniform().",
        ),
        (lambda: GELU("erf"), "layer GELU: no such form. Found 'erf'; expected 'none' or 'tanh'."),
        (lambda: LeakyReLU(-1), "layer LeakyReLU: slope out of range. Found -1; expected a number of at least 0."),
        (lambda: LeakyReLU(np.nan), "layer LeakyReLU: slope out of range. Found nan; expected a number of at least 0."),
        (lambda: LeakyReLU(np.inf), "layer LeakyReLU: slope out of range. Found inf; expected a number of at least 0."),
    ],
)
def test_impossible_setting_is_refused(make: Callable[[], Layer], message: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "size", [(3, 3, 3), (3,), "same", b"ab", 3.0, (3.0, 3), None, True, np.array([3.0, 3.0]), np.ones((2, 2), int)]
)
def test_what_is_no_pair_of_integers_is_refused(size: object) -> None:
    with pytest.raises(InputError, match="layer Conv2d: no kernel_size of a window"):
        Conv2d(4, size)
    with pytest.raises(InputError, match="layer MaxPool2d: no padding of a window"):
        MaxPool2d(2, padding=size)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda size: Conv2d(4, size), "kernel_size"),
        (lambda size: Conv2d(4, 3, stride=size), "stride"),
        (lambda size: Conv2d(4, 3, padding=(0, size)), "padding"),
        (lambda size: MaxPool2d(size), "kernel_size"),
        (lambda size: AvgPool2d(2, stride=size), "stride"),
        (lambda size: AdaptiveAvgPool2d(size), "output_size"),
    ],
)
def test_what_no_image_has_room_for_is_refused(make: Callable[[int], Layer], name: str) -> None:
    make(2**15)
    for size in (2**15 + 1, 10**30):
        expected = "an integer of at most 32768, or two: vertical and horizontal"
        with pytest.raises(InputError, match=rf": no {name} of a window\. Found .*{size}.*; expected {expected}\.$"):
            make(size)


def test_counts_may_be_numpys() -> None:
    one = np.int8(1)
    conv, linear = Conv2d(one, one, groups=one), Linear(np.int64(3))
    conv.build((4, 4, 1))
    linear.build((4,))
    counts = conv.out_channels, conv.groups, linear.out_features, GroupNorm(one).num_groups, *conv.kernel_size
    assert {type(count) for count in counts} == {int}


def test_flags_may_be_numpys() -> None:
    conv = Conv2d(4, 3, bias=np.bool_(False), exact=np.True_)
    assert (conv.bias, conv.exact, Linear(4, bias=np.False_).bias) == (False, True, False)
    assert type(conv.bias) is bool


@pytest.mark.parametrize("size", [[3, 2], np.array([3, 2]), np.array([3, 2], np.uint8), (np.int64(3), np.int8(2))])
def test_window_may_be_any_sequence_of_two_integers(size: object) -> None:
    for sides in (Conv2d(4, size).kernel_size, MaxPool2d(5, padding=size).padding, AdaptiveAvgPool2d(size).output_size):
        assert sides == (3, 2)
        assert {type(side) for side in sides} == {int}


def test_window_of_one_number_is_square() -> None:
    assert Conv2d(4, np.int64(3), padding=(np.int32(1), 0)).padding == (1, 0)
    layer = Conv2d(4, 3, stride=2, padding=1)
    assert (layer.kernel_size, layer.stride, layer.padding) == ((3, 3), (2, 2), (1, 1))
    assert MaxPool2d(2).stride == (2, 2)
    assert MaxPool2d((3, 2), stride=(1, 2), padding=(1, 0)).output_shape((7, 6, 4)) == (7, 3, 4)
