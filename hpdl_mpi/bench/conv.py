"""``hpdl bench conv``: the methods of convolution, one against another, on shapes of well-known networks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from statistics import median
from typing import Any

import numpy as np

from hpdl_mpi.base.errors import InputError, require
from hpdl_mpi.base.output import counted
from hpdl_mpi.bench.machine import describe_command, describe_machine, describe_versions
from hpdl_mpi.bench.rounds import require_rounds, turn_order
from hpdl_mpi.kernels.conv2d import output_size
from hpdl_mpi.kernels.threads import max_threads, set_threads
from hpdl_mpi.nn import Context, MicroBatch, Pool
from hpdl_mpi.nn.conv_methods import ConvShape
from hpdl_mpi.nn.conv_rules import RULES, choose
from hpdl_mpi.nn.window import MOST_PIXELS

_MOST_ELEMENTS = 1 << 28
"""Of an array of a described shape: 1 GiB."""

PASSES = ("forward", "backward_input", "backward_weight")


@dataclass(frozen=True)
class ConvWorkload:
    """A convolution of square images, NHWC.

    Attributes
    ----------
    name : str
        Where it stands.
    batch, size, in_channels, out_channels : int
        Images, their height and width, and channels.
    kernel_size, stride, groups : int
    padding : int, optional
        Half the kernel size, unless given.
    """

    name: str
    batch: int
    size: int
    in_channels: int
    out_channels: int
    kernel_size: int = 3
    stride: int = 1
    groups: int = 1
    padding: int | None = None

    @property
    def border(self) -> int:
        """The padding, given or not."""
        return self.kernel_size // 2 if self.padding is None else self.padding

    @property
    def shape(self) -> ConvShape:
        """What a method is chosen by."""
        padding = self.border
        side = output_size(self.size, self.kernel_size, self.stride, padding)
        weight = self.out_channels, self.kernel_size, self.kernel_size, self.in_channels // self.groups
        return ConvShape(weight, (side, side), (self.stride, self.stride), (padding, padding), self.groups)

    @property
    def operations(self) -> int:
        """Floating-point operations of a forward pass by definition."""
        shape = self.shape
        return 2 * self.batch * math.prod(shape.output) * math.prod(shape.weight)


CONVOLUTIONS = (
    ConvWorkload("resnet20, 1st stage", 128, 32, 16, 16),
    ConvWorkload("resnet20, 2nd stage", 128, 16, 32, 32),
    ConvWorkload("resnet20, 3rd stage", 128, 8, 64, 64),
    ConvWorkload("resnet20, between", 128, 32, 16, 32, stride=2),
    ConvWorkload("resnet18_cifar, first", 64, 32, 3, 64),
    ConvWorkload("resnet18_cifar, 1st stage", 64, 32, 64, 64),
    ConvWorkload("resnet18_cifar, 2nd stage", 64, 16, 128, 128),
    ConvWorkload("resnet18_cifar, 3rd stage", 64, 8, 256, 256),
    ConvWorkload("resnet18_cifar, 4th stage", 64, 4, 512, 512),
    ConvWorkload("resnet18_cifar, between", 64, 32, 64, 128, stride=2),
    ConvWorkload("resnet18_cifar, shortcut", 64, 32, 64, 128, 1, stride=2),
    ConvWorkload("resnet50, first", 8, 224, 3, 64, 7, stride=2),
    ConvWorkload("resnet50, 1 x 1", 8, 56, 64, 256, 1),
    ConvWorkload("resnet50, 1 x 1, last", 8, 7, 2048, 512, 1),
    ConvWorkload("resnet50, 3 x 3, last", 8, 7, 512, 512),
    ConvWorkload("resnext50, 32 groups", 8, 56, 128, 128, groups=32),
    ConvWorkload("grey, 5 x 5, first", 128, 28, 1, 32, 5),
    ConvWorkload("alexnet, first", 32, 224, 3, 64, 11, stride=4, padding=2),
    ConvWorkload("alexnet, second", 32, 27, 64, 192, 5),
    ConvWorkload("alexnet, third", 32, 13, 192, 384),
    ConvWorkload("vit, patches", 8, 224, 3, 192, 16, stride=16, padding=0),
    ConvWorkload("mobilenet_v2, depthwise", 16, 56, 144, 144, groups=144),
    ConvWorkload("mobilenet_v2, depthwise, stride 2", 16, 112, 96, 96, stride=2, groups=96),
)


def named(part: str) -> list[ConvWorkload]:
    """Return those of `CONVOLUTIONS` whose name has this part, in letters of either case; an `InputError` if none."""
    found = [workload for workload in CONVOLUTIONS if part.lower() in workload.name.lower()]
    if not found:
        known = "; ".join(workload.name for workload in CONVOLUTIONS)
        raise InputError(
            "no convolution of such a name", where="--only", found=repr(part), expected=f"part of: {known}"
        )
    return found


def described(text: str) -> ConvWorkload:
    """Return the convolution that is described as ``batch=8,size=56,in_channels=64,out_channels=64,stride=2``.

    Raises
    ------
    InputError
        It is not, or there is no such convolution.
    """
    pairs = [part.strip().partition("=") for part in text.split(",")]
    try:
        numbers = {key: int(value) for key, _, value in pairs}
        workload = ConvWorkload("yours", **numbers)
    except (ValueError, TypeError) as error:
        *needed, last = (field.name for field in fields(ConvWorkload) if field.name != "name")
        raise InputError(
            "no description of a convolution",
            where="--shape",
            found=repr(text),
            expected=f"{'=NUMBER,'.join(needed)}=NUMBER,{last}=NUMBER, of which the first four must be there",
        ) from error
    counts = {key: value for key, value in asdict(workload).items() if key not in ("name", "padding")}
    groups, padding = workload.groups, workload.border

    def demand(holds: bool, expected: str) -> None:
        require("--shape", text, holds, expected)

    demand(len(numbers) == len(pairs), "each number once")
    demand(min(counts.values()) >= 1 and padding >= 0, "numbers of at least 1, and a padding of at least 0")
    demand(not workload.in_channels % groups and not workload.out_channels % groups, "groups that divide the channels")
    demand(workload.size + 2 * padding >= workload.kernel_size, "a kernel_size within the image and its padding")
    demand(max(workload.kernel_size, workload.stride, padding) <= MOST_PIXELS, f"windows of at most {MOST_PIXELS:,}")
    arrays = workload.batch * workload.size**2 * workload.in_channels, math.prod(workload.shape.weight)
    outputs = workload.batch * math.prod(workload.shape.output) * workload.out_channels
    demand(max(*arrays, outputs) <= _MOST_ELEMENTS, f"arrays of at most {_MOST_ELEMENTS:,} numbers")
    stride = f", stride {workload.stride}" if workload.stride > 1 else ""
    kernel = f"{workload.kernel_size} x {workload.kernel_size}{stride}, padding {padding}"
    several = f", {groups} groups" if groups > 1 else ""
    image = f"{workload.size} x {workload.size} x {workload.in_channels}"
    return replace(workload, name=f"{workload.batch} of {image} to {workload.out_channels}, {kernel}{several}")


def bench_conv(
    workloads: Sequence[ConvWorkload] = CONVOLUTIONS,
    threads: int = 1,
    *,
    num_rounds: int = 10,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Time every method that can compute each of some convolutions, in float32.

    Parameters
    ----------
    workloads : sequence of ConvWorkload
    threads : int
    num_rounds : int
        In each, every method takes a turn.
    say : callable
        Shown what goes on.

    Returns
    -------
    dict
        Ready for JSON. Under "convolutions", each has the seconds of its methods by pass, medians over rounds, which
        method is chosen and which is fastest. Under "rules", when a method is chosen: the first that holds decides.
    """
    require_rounds(num_rounds)
    require("--threads", threads, 1 <= threads <= max_threads(), f"1 to {max_threads()}, the cores of this process")
    set_threads(threads)
    convolutions = []
    for number, workload in enumerate(workloads, 1):
        shape = workload.shape
        seconds = _time_methods(workload, num_rounds, f"{number} of {len(workloads)}, {workload.name}", say)
        convolutions.append(
            asdict(workload)
            | {
                "padding": workload.border,
                "operations": workload.operations,
                "seconds": seconds,
                "chosen": choose(shape).name,
                "fastest": min(seconds, key=lambda name: sum(seconds[name].values())),
            }
        )
    return {
        "convolutions": convolutions,
        "rules": [{"method": rule.method.name, "condition": rule.condition} for rule in RULES],
        "threads": threads,
        "rounds": num_rounds,
        "machine": describe_machine(),
        "versions": describe_versions(),
        "command": describe_command(),
    }


def _time_methods(
    workload: ConvWorkload, num_rounds: int, label: str, say: Callable[[str], None]
) -> dict[str, dict[str, float]]:
    """Return the seconds of each pass of each method."""
    shape = workload.shape
    rng = np.random.default_rng(0)
    sizes = {
        "x": (workload.batch, workload.size, workload.size, workload.in_channels),
        "weight": shape.weight,
        "dy": (workload.batch, *shape.output, workload.out_channels),
    }
    x, weight, dy = (rng.standard_normal(size, dtype=np.float32) for size in sizes.values())
    y, dx, dweight = np.empty_like(dy), np.empty_like(x), np.zeros_like(weight)
    ctx = Context(MicroBatch(Pool()))
    methods = {rule.method.name: rule.method(shape) for rule in RULES if rule.method.can(shape)}
    taken: dict[str, dict[str, list[float]]] = {name: {key: [] for key in PASSES} for name in methods}
    for number in range(-1, num_rounds):  # the first one compiles, and fills the pool
        if number <= 0:
            say(f"{label}: {'warming up' if number < 0 else counted(num_rounds, 'round')}")
        for name in turn_order(list(methods), number):
            method = methods[name]
            calls = (
                lambda method=method: method.forward(x, weight, weight.reshape(-1)[:0], y, ctx),
                lambda method=method: method.backward_input(dy, weight, dx, ctx),
                lambda method=method: method.backward_weight(x, dy, dweight, ctx),
            )
            for key, call in zip(PASSES, calls, strict=True):
                began = time.perf_counter()
                call()
                if number >= 0:
                    taken[name][key].append(time.perf_counter() - began)
    return {name: {key: median(values) for key, values in by_pass.items()} for name, by_pass in taken.items()}
