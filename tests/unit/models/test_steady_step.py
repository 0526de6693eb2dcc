"""After warm-up a training step allocates no array: neither in NumPy nor in a kernel.

For NumPy see `tests.allocations`. Compiled code counts its own blocks: one for every array that Python hands to a
kernel, which only wraps it, and one for every array that the kernel makes.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest

from hpdl_mpi import kernels
from hpdl_mpi.comm import SingleCommunicator
from hpdl_mpi.data import Batch
from hpdl_mpi.kernels.jit import ParallelKernel, counted_allocations
from hpdl_mpi.kernels.mixup import MIXED
from hpdl_mpi.kernels.recording import Recording
from hpdl_mpi.kernels.threads import set_threads
from hpdl_mpi.models import MODELS
from hpdl_mpi.nn import (
    GELU,
    GRU,
    LSTM,
    RNN,
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm2d,
    Context,
    Conv2d,
    CrossEntropy,
    Dropout,
    Dropout2d,
    Flatten,
    GlobalAvgPool2d,
    GroupNorm,
    Huber,
    Layer,
    LayerNorm,
    LeakyReLU,
    Linear,
    Loss,
    MaxPool2d,
    MeanSquaredError,
    Parallel,
    ReLU6,
    Residual,
    Sequential,
    Shape,
    Sigmoid,
    SiLU,
    Softmax,
    StochasticDepth,
    Tanh,
    joined_members,
    member_shapes,
)
from hpdl_mpi.optim import SGD, Adam, AdamW, Optimizer
from hpdl_mpi.parallel import ProcessGrid, Replica, TrainingStep
from hpdl_mpi.parallel.pipeline import Pipeline, make_schedule
from tests.allocations import Growth
from tests.threads import needs_two_threads

MICRO_BATCH = 32
TOKENS = 20
"""Of vocabularies, or fewer than there are."""

INPUTS = (28, 28, 1)
SMALL: dict[str, tuple[dict[str, Any], Any]] = {
    "alexnet": ({"outputs": 10, "hidden": 16}, (63, 63, 3)),
    "bert": ({"vocabulary": 20, "layers": 2, "heads": 2, "width": 32}, (9,)),
    "gpt": ({"vocabulary": 20, "layers": 2, "heads": 2, "width": 32, "dropout": 0.1}, (9,)),
    "llama": ({"vocabulary": 20, "layers": 2, "heads": 2, "kv_heads": 1, "width": 32, "hidden": 40}, (9,)),
    "lstm_lm": ({"vocabulary": 20, "hidden": 32, "dropout": 0.1}, (9,)),
    "mlp_deep": ({"depth": 4, "width": 32, "outputs": 10}, INPUTS),
    "mobilenet_v2": ({"outputs": 10, "width_mult": 0.35}, (32, 32, 3)),
    "rnn_lm": ({"vocabulary": 20, "hidden": 32, "dropout": 0.1}, (9,)),
    "seq2seq": ({"layers": 1, "width": 32, "hidden": 40, "dropout": 0.1}, ((9,), (7,))),
    "vgg11_bn": ({"outputs": 10, "hidden": 16}, (32, 32, 3)),
    "vit": ({"size": 12, "patch": 4, "outputs": 10, "layers": 2, "heads": 2, "width": 32}, (12, 12, 3)),
}
"""Arguments and samples for models that are large otherwise."""

ALIKE = {"resnet18", "resnet18_cifar", "resnet34", "resnet50", "resnet56", "vgg16_bn", "vgg16_cifar"}
ALIKE |= {"gpt2_124m", "gpt_nano", "gpt_small", "vit_tiny"}
"""Models of the same layers as others, with more of them."""

ARRAY = MICRO_BATCH * 10 * 4
"""Bytes of the smallest array of a step: the outputs of a micro-batch, or their gradient; a flat array of parameters is
larger. One that is not from the pool shows even if it is freed at once, since no step takes as much at any time."""

SETTINGS = [
    pytest.param(
        *(accumulate, threads),
        id=f"accumulate {accumulate}, threads {threads}",
        marks=needs_two_threads if threads == 2 else (),
    )
    for accumulate, threads in product((1, 3), (1, 2))
]


def every_layer() -> Layer:
    """Return a network with one of each kind of layer."""
    return Sequential(
        *(Conv2d(4, 3, stride=2), LeakyReLU(), MaxPool2d(2), Sigmoid(), AvgPool2d(2), Dropout(0.5)),
        *(GroupNorm(2), GELU(), Dropout2d(0.5), SiLU(), ReLU6(), GELU("tanh"), AdaptiveAvgPool2d(2)),
        Residual(Sequential(Conv2d(4, 1), Tanh(), StochasticDepth(0.5)), Conv2d(4, 1, bias=False), activation="relu6"),
        Parallel(Conv2d(5, 1), Tanh()),
        *(Flatten(), Residual(Linear(36)), LayerNorm(), Softmax(), Linear(10)),
    )


def every_convolution() -> Layer:
    """Return a network with each method of convolution, and with statistics."""
    plain = Conv2d(16, 3, stride=2), BatchNorm2d(activation="relu"), Conv2d(16, 3, padding=1), BatchNorm2d()
    others = Conv2d(16, 3, groups=16), Conv2d(6, 1, groups=2), Conv2d(6, 1, stride=2)
    return Sequential(*plain, *others, GlobalAvgPool2d(), Linear(10))


OPTIMIZERS = {
    "sgd": SGD(1e-3),
    "momentum": SGD(1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4, l1=1e-5),
    "adam": Adam(weight_decay=1e-4),
    "adamw": AdamW(weight_decay=1e-4),
}


def steps(
    model: Layer,
    shape: Shape,
    optimizer: Optimizer | None = None,
    loss: Loss | None = None,
    accumulate: int = 1,
    ema: float | None = None,
    mixed: bool = False,
) -> Callable[[], None]:
    """Return a function that takes a whole training step; it has been called, so kernels and buffers are there."""
    rng = np.random.default_rng(0)
    pipeline = Pipeline(schedule=make_schedule("1f1b", num_ranks=1, num_microbatches=accumulate))
    optimizer = optimizer or OPTIMIZERS["sgd"]
    replica = Replica(model, shape, optimizer, dtype=np.float32, seed=0, pipeline=pipeline, ema=ema)
    grid = ProcessGrid(SingleCommunicator(), {"pp": 1, "dp": 1})
    learn = TrainingStep(replica, loss or CrossEntropy(), grid, clip_norm=1.0, num_flags=2)
    size = accumulate * MICRO_BATCH
    arrays = tuple(
        rng.integers(TOKENS, size=(size, *sample))
        if model.reads_tokens
        else rng.normal(size=(size, *sample)).astype(np.float32)
        for sample in member_shapes(shape)
    )
    inputs = joined_members(arrays)
    outputs = model.output_shape(shape)
    regression = loss is not None and loss.task == "regression"
    targets = rng.integers(outputs[-1], size=(size, *outputs[:-1]))
    if regression:
        targets = np.zeros((size, *outputs), np.float32)
    if mixed:
        targets = np.array([(label, 0, 0.5) for label in targets], MIXED)
    batch = Batch(inputs, targets, np.arange(size), global_size=size, offset=0)
    assert MICRO_BATCH * 4 * outputs[-1] >= ARRAY
    assert replica.params.nbytes >= ARRAY

    def step() -> None:
        learn(batch, epoch=0, lr=1e-3, flags=lambda: (False, True))

    for _ in range(2):
        step()
    return step


class Handed:
    """Counts the arrays that Python hands to kernels, while kernels are patched to tell."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.arrays = 0
        plain_call, plain_replay = ParallelKernel.__call__, Recording.replay

        def call(kernel: ParallelKernel, *arguments: object) -> object:
            self.count(arguments)
            return plain_call(kernel, *arguments)

        def replay(recording: Recording) -> object:
            for function, arguments in recording._calls:
                if hasattr(function, "py_func"):  # others call kernels, which tell then
                    self.count(arguments)
            return plain_replay(recording)

        patch.setattr(ParallelKernel, "__call__", call)
        patch.setattr(Recording, "replay", replay)
        # What has been compiled holds on to its callees, so this meets calls from Python only.
        for info in pkgutil.iter_modules(kernels.__path__):
            module = importlib.import_module(f"{kernels.__name__}.{info.name}")
            for name, value in vars(module).copy().items():
                if hasattr(value, "py_func"):
                    patch.setattr(module, name, self._telling(value))

    def count(self, arguments: tuple) -> None:
        for argument in arguments:
            if isinstance(argument, tuple):
                self.count(argument)
            self.arrays += isinstance(argument, np.ndarray)

    def _telling(self, kernel: Callable) -> Callable:
        def call(*arguments: object) -> object:
            self.count(arguments)
            return kernel(*arguments)

        return call


def excess_blocks(function: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many blocks compiled code takes in a call beyond one for each array that it is handed."""
    with monkeypatch.context() as patch:
        handed = Handed(patch)
        with counted_allocations() as blocks:
            function()
            taken = blocks()
    assert handed.arrays > 0
    return taken - handed.arrays


def check(step: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    growth = Growth(step)
    assert growth.kept == 0
    assert growth.peak < ARRAY
    assert excess_blocks(step, monkeypatch) == 0


@pytest.fixture
def step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be replayed."""
    monkeypatch.setattr("hpdl_mpi.parallel.pipeline.replays.is_replayable", lambda model: False)


@pytest.mark.parametrize(("accumulate", "threads"), SETTINGS)
@pytest.mark.parametrize("name", ["gpt", "mlp", "seq2seq"])
def test_replay_allocates_no_array(name: str, accumulate: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    set_threads(threads)
    arguments, shape = SMALL.get(name, ({}, INPUTS))
    check(steps(MODELS[name](**arguments), shape, accumulate=accumulate), monkeypatch)


@pytest.mark.usefixtures("step_by_step")
@pytest.mark.parametrize(("accumulate", "threads"), SETTINGS)
@pytest.mark.parametrize("name", sorted(MODELS.keys() - ALIKE))
def test_step_of_every_model_allocates_no_array(
    name: str, accumulate: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_threads(threads)
    arguments, shape = SMALL.get(name, ({}, INPUTS))
    check(steps(MODELS[name](**arguments), shape, accumulate=accumulate), monkeypatch)


@pytest.mark.usefixtures("step_by_step")
@pytest.mark.parametrize(("accumulate", "threads"), SETTINGS)
@pytest.mark.parametrize("make", [every_layer, every_convolution])
def test_step_of_every_layer_allocates_no_array(
    make: Callable[[], Layer], accumulate: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_threads(threads)
    check(steps(make(), (27, 27, 1), accumulate=accumulate), monkeypatch)


@pytest.mark.parametrize(("accumulate", "threads"), SETTINGS)
def test_step_of_every_recurrent_layer_allocates_no_array(
    accumulate: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_threads(threads)
    cells = RNN(33, bidirectional=True), LSTM(65, 2, bidirectional=True, dropout=0.1), GRU(34, 2)
    check(steps(Sequential(*cells, Flatten(), Linear(10)), (9, 20), accumulate=accumulate), monkeypatch)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_step_of_every_optimizer_allocates_no_array(optimizer: Optimizer, monkeypatch: pytest.MonkeyPatch) -> None:
    check(steps(Sequential(Linear(10)), (300,), optimizer), monkeypatch)


def test_step_with_a_moving_average_allocates_no_array(monkeypatch: pytest.MonkeyPatch) -> None:
    check(steps(every_convolution(), (27, 27, 1), ema=0.999), monkeypatch)


@pytest.mark.parametrize("loss", [CrossEntropy(0.1), MeanSquaredError(), Huber()], ids=lambda loss: type(loss).__name__)
def test_step_of_every_loss_allocates_no_array(loss: Loss, monkeypatch: pytest.MonkeyPatch) -> None:
    check(steps(Sequential(Linear(10)), (300,), loss=loss), monkeypatch)


def test_step_of_mixed_samples_allocates_no_array(monkeypatch: pytest.MonkeyPatch) -> None:
    check(steps(Sequential(Linear(10)), (300,), mixed=True), monkeypatch)


class Wasteful(Layer):
    """Takes an array that is not from the pool, and frees or keeps it."""

    def __init__(self, keep: bool = False) -> None:
        self.keep = keep
        self.kept: list[np.ndarray] = []

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        copy = x * 1
        if self.keep:
            self.kept.append(copy)
        y = ctx.take(x.shape, x.dtype)
        np.copyto(y, copy)
        return y

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray:
        ctx.retain(dy)
        return dy


def test_array_that_a_layer_frees_at_once_shows() -> None:
    assert Growth(steps(Sequential(Linear(10), Wasteful(), Linear(10)), (300,))).peak >= ARRAY


def test_array_that_a_layer_keeps_shows() -> None:
    assert Growth(steps(Sequential(Linear(10), Wasteful(keep=True), Linear(10)), (300,))).kept == ARRAY


def test_array_that_a_kernel_makes_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    import numba

    @numba.njit
    def allocate(x: np.ndarray) -> int:
        return np.zeros(x.size).size

    step = steps(Sequential(Linear(10)), (300,))
    x = np.zeros(3)
    allocate(x)

    def wasteful() -> None:
        step()
        allocate(x)

    # Its argument, which is not counted as one of ours, and the array that it makes.
    assert excess_blocks(wasteful, monkeypatch) == 2
