"""Networks for images: their parameters have the names, shapes and numbers that torchvision publishes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.models import MODELS
from hpdl_mpi.models.mobilenet import inverted_residual
from hpdl_mpi.nn import Layout, Shape
from tests import reference as ref
from tests.unit.nn.rig import Case, Parameters, Rig

Shapes = dict[str, Shape]
"""Of parameters and statistics, by full name; weights of convolutions are (k, kh, kw, c)."""


def conv(name: str, channels: tuple[int, int], size: int, *, bias: bool = False, groups: int = 1) -> Shapes:
    inputs, outputs = channels
    weight = {f"{name}.weight": (outputs, size, size, inputs // groups)}
    return weight | ({f"{name}.bias": (outputs,)} if bias else {})


def norm(name: str, channels: int) -> Shapes:
    return {f"{name}.{array}": (channels,) for array in ("weight", "bias", "running_mean", "running_var")}


def linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def alexnet() -> Shapes:
    return (
        conv("features.0", (3, 64), 11, bias=True)
        | conv("features.3", (64, 192), 5, bias=True)
        | conv("features.6", (192, 384), 3, bias=True)
        | conv("features.8", (384, 256), 3, bias=True)
        | conv("features.10", (256, 256), 3, bias=True)
        | linear("classifier.1", 256 * 6 * 6, 4096)
        | linear("classifier.4", 4096, 4096)
        | linear("classifier.6", 4096, 1000)
    )


def vgg_features(numbers: Sequence[int], widths: Sequence[int]) -> Shapes:
    shapes: Shapes = {}
    for number, channels in zip(numbers, zip((3, *widths), widths, strict=False), strict=True):
        shapes |= conv(f"features.{number}", channels, 3, bias=True) | norm(f"features.{number + 1}", channels[1])
    return shapes


def vgg_classifier() -> Shapes:
    hidden = linear("classifier.0", 512 * 7 * 7, 4096) | linear("classifier.3", 4096, 4096)
    return hidden | linear("classifier.6", 4096, 1000)


VGG11 = vgg_features((0, 4, 8, 11, 15, 18, 22, 25), (64, 128, 256, 256, 512, 512, 512, 512))
VGG16 = vgg_features((0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40), (*[64] * 2, *[128] * 2, *[256] * 3, *[512] * 6))

BLOCKS = (
    *((32, 16, 1), (16, 24, 6), (24, 24, 6), (24, 32, 6), (32, 32, 6), (32, 32, 6)),
    *((32, 64, 6), (64, 64, 6), (64, 64, 6), (64, 64, 6), (64, 96, 6), (96, 96, 6)),
    *((96, 96, 6), (96, 160, 6), (160, 160, 6), (160, 160, 6), (160, 320, 6)),
)
"""Of MobileNetV2: channels in and out, and how much wider a block is inside."""


def mobilenet_v2() -> Shapes:
    shapes = conv("features.0.0", (3, 32), 3) | norm("features.0.1", 32)
    for number, (inputs, outputs, expansion) in enumerate(BLOCKS, 1):
        block, wide, place = f"features.{number}.conv", inputs * expansion, 0
        if expansion > 1:
            shapes |= conv(f"{block}.0.0", (inputs, wide), 1) | norm(f"{block}.0.1", wide)
            place = 1
        shapes |= conv(f"{block}.{place}.0", (wide, wide), 3, groups=wide) | norm(f"{block}.{place}.1", wide)
        shapes |= conv(f"{block}.{place + 1}", (wide, outputs), 1) | norm(f"{block}.{place + 2}", outputs)
    last = conv("features.18.0", (320, 1280), 1) | norm("features.18.1", 1280)
    return shapes | last | linear("classifier.1", 1280, 1000)


def resnet(
    stem: int, widths: Sequence[int], counts: Sequence[int], outputs: int, *, bottleneck: bool = False
) -> Shapes:
    """Return the shapes of a residual network whose first convolution has kernels of `stem` x `stem`."""
    inputs = widths[0]
    shapes = conv("conv1", (3, inputs), stem) | norm("bn1", inputs)
    for stage, (width, count) in enumerate(zip(widths, counts, strict=True), 1):
        wide = 4 * width if bottleneck else width
        for number in range(count):
            block = f"layer{stage}.{number}"
            sizes = (1, 3, 1) if bottleneck else (3, 3)
            channels = (inputs, width, width, wide) if bottleneck else (inputs, width, width)
            for place, size in enumerate(sizes, 1):
                shapes |= conv(f"{block}.conv{place}", (channels[place - 1], channels[place]), size)
                shapes |= norm(f"{block}.bn{place}", channels[place])
            if number == 0 and (stage > 1 or inputs != wide):
                shapes |= conv(f"{block}.downsample.0", (inputs, wide), 1) | norm(f"{block}.downsample.1", wide)
            inputs = wide
    return shapes | linear("fc", inputs, outputs)


WIDE = (64, 128, 256, 512)
NARROW = (16, 32, 64)

PUBLISHED: dict[str, tuple[Shapes, int]] = {
    "alexnet": (alexnet(), 61_100_840),
    "vgg11_bn": (VGG11 | vgg_classifier(), 132_868_840),
    "vgg16_bn": (VGG16 | vgg_classifier(), 138_365_992),
    "vgg16_cifar": (VGG16 | linear("classifier", 512, 10), 14_728_266),
    "mobilenet_v2": (mobilenet_v2(), 3_504_872),
    "resnet18": (resnet(7, WIDE, (2, 2, 2, 2), 1000), 11_689_512),
    "resnet34": (resnet(7, WIDE, (3, 4, 6, 3), 1000), 21_797_672),
    "resnet50": (resnet(7, WIDE, (3, 4, 6, 3), 1000, bottleneck=True), 25_557_032),
    "resnet18_cifar": (resnet(3, WIDE, (2, 2, 2, 2), 10), 11_173_962),
    "resnet20": (resnet(3, NARROW, (3, 3, 3), 10), 272_474),
    "resnet56": (resnet(3, NARROW, (9, 9, 9), 10), 855_770),
}


@pytest.mark.parametrize(("name", "shapes", "num_parameters"), [(name, *row) for name, row in PUBLISHED.items()])
def test_parameters_are_those_published(name: str, shapes: Shapes, num_parameters: int) -> None:
    model = MODELS[name]()
    size = 224 if shapes[list(shapes)[-1]] == (1000,) else 32
    model.build((size, size, 3))
    assert model.output_shape((size, size, 3)) == shapes[list(shapes)[-1]]
    trained = Layout(model)
    assert trained.num_parameters == num_parameters
    segments = (*trained.segments, *Layout(model, statistics=True).segments)
    assert {segment.name: segment.shape for segment in segments} == shapes


@pytest.mark.parametrize(("width_mult", "num_parameters"), [(0.35, 1_677_128), (1.4, 6_108_776)])
def test_other_widths_of_mobilenet_have_the_sizes_of_torchvision(width_mult: float, num_parameters: int) -> None:
    model = MODELS["mobilenet_v2"](width_mult=width_mult)
    model.build((224, 224, 3))
    assert Layout(model).num_parameters == num_parameters


@pytest.mark.parametrize("width_mult", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_width_is_refused(width_mult: float) -> None:
    with pytest.raises(InputError, match=r"width_mult: out of range\. Found .*; expected a number above 0"):
        MODELS["mobilenet_v2"](width_mult=width_mult)


@pytest.mark.parametrize(("name", "size"), [("alexnet", 62), ("vgg11_bn", 31), ("vgg16_bn", 31), ("vgg16_cifar", 31)])
def test_images_that_are_too_small_are_refused(name: str, size: int) -> None:
    MODELS[name]().build((size + 1, size + 1, 3))
    with pytest.raises(InputError, match="the window does not fit the image"):
        MODELS[name]().build((size, size, 3))


def _norm(x: np.ndarray, p: Parameters, name: str) -> np.ndarray:
    return ref.batch_norm(x, p[f"{name}.weight"], p[f"{name}.bias"], 1e-5)


@pytest.mark.parametrize(
    ("channels", "stride", "expansion"), [((4, 4), 1, 3), ((4, 5), 1, 2), ((4, 4), 2, 2), ((3, 3), 1, 1)]
)
def test_inverted_residual_is_that_of_its_definition(channels: tuple[int, int], stride: int, expansion: int) -> None:
    """A shortcut where channels and size stay; no first convolution where nothing is widened."""
    inputs, outputs = channels

    def twin(x: np.ndarray, p: Parameters) -> np.ndarray:
        y, place = x, 0
        if expansion > 1:
            y = ref.relu6(_norm(ref.conv2d(y, p["conv.0.0.weight"]), p, "conv.0.1"))
            place = 1
        step = (stride, stride)
        weight = p[f"conv.{place}.0.weight"]
        y = ref.conv2d(y, weight, stride=step, padding=(1, 1), groups=inputs * expansion)
        y = ref.relu6(_norm(y, p, f"conv.{place}.1"))
        y = _norm(ref.conv2d(y, p[f"conv.{place + 1}.weight"]), p, f"conv.{place + 2}")
        return x + y if stride == 1 and inputs == outputs else y

    rig = Rig(Case(lambda: inverted_residual(inputs, outputs, stride, expansion), (5, 4, inputs), twin))
    np.testing.assert_allclose(rig.output(rig.x), twin(rig.x, rig.named_params), rtol=0, atol=1e-12)
